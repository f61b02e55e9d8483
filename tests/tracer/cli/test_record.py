"""`trace record` says nothing of a run that is not so, and runs other people's programs."""

import sys
from pathlib import Path

import numpy as np
import pytest
from commands import run
from tensortrace.tracer.cli.record import _settings, command
from tensortrace.tracer.errors import UserError
from tensortrace.tracer.names import Key
from tensortrace.tracer.trace import Trace


@pytest.mark.parametrize("engine", ["llama.cpp", "torch"])
def test_a_fault_is_refused_where_it_would_not_be_put_in(tiny: Path, tmp_path: Path, engine: str) -> None:
    output = tmp_path / "a.h5"
    with pytest.raises(UserError, match="--inject needs an engine that runs our own operations"):
        command(str(tiny), prompt="the", engine=engine, inject="attn_scale", output=output)
    assert not output.exists()


def test_softmax_is_stated_only_where_our_kernels_run() -> None:
    assert _settings("cpu", "online", 64, None) == {"chunk": None, "softmax": "online", "tile": 64}
    assert _settings("llama.cpp", "online", 64, 8) == {"chunk": 8}


PROGRAM = """
import os, signal, sys
import numpy as np
from tensortrace.tracer.stream import StreamWriter

stream = StreamWriter(os.environ["TENSORTRACE_OUT"], {"engine": "mine"})
stream.step(0, [7, 8], 0)
stream.tensor(0, "embd", np.ones((2, 4), np.float32))
if sys.argv[1:] == ["-n", "crash"]:
    os.kill(os.getpid(), signal.SIGSEGV)
stream.close()
sys.exit(int(sys.argv[2]))
"""


@pytest.fixture
def program(tmp_path: Path) -> tuple[str, str]:
    """A program that records; its arguments are `-n STATUS` or `-n crash`."""
    path = tmp_path / "engine.py"
    path.write_text(PROGRAM)
    return sys.executable, str(path)


@pytest.mark.parametrize(("end", "code"), [("0", 0), ("3", 3), ("crash", 128 + 11)])
def test_a_program_is_run_and_its_status_passed_on(
    program: tuple[str, str], tmp_path: Path, end: str, code: int
) -> None:
    output = tmp_path / "mine.h5"
    outcome = run("record", "-o", output, "--exec", "--", *program, "-n", end)
    assert outcome.code == code, outcome.err
    assert "mine.h5: 1 tensors, 1 steps" in outcome.out
    assert ("was killed by SIGSEGV" in outcome.err) == (end == "crash")
    assert ("exited with 3" in outcome.err) == (end == "3")
    with Trace(output) as trace:
        assert trace.complete == (end != "crash")
        assert np.array_equal(trace.read(Key(None, "embd"), 0), np.ones((2, 4)))


def test_what_makes_no_sense_beside_a_program(program: tuple[str, str], tmp_path: Path) -> None:
    output = tmp_path / "mine.h5"
    for arguments, message in (
        (("--exec",), "nothing to run"),
        (("--exec", "-n", 3, "-p", "the", "--", *program, "-n", 0), "--prompt, -n: with --exec the program"),
        (("model.gguf", *program), "there is one MODEL"),
    ):
        outcome = run("record", "-o", output, *arguments)
        assert (outcome.code, len(outcome.err.splitlines())) == (2, 1)
        assert message in outcome.err
    assert not output.exists()
