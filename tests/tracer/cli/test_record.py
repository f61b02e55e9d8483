"""`trace record` says nothing of a run that is not so, and runs other people's programs."""

import sys
from pathlib import Path

import numpy as np
import pytest
from commands import run
from ggufs import write_gguf
from recording import distances
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


@pytest.mark.llamacpp
def test_llama_cpp_with_flash_attention_and_other_caches(tmp_path: Path) -> None:
    model = write_gguf(
        tmp_path / "wide.gguf", head_dim=64
    )  # whole blocks of a quantised cache, which is rotated
    errors = []
    for name, options in (
        ("f32", ("--kv-type", "f32")),
        ("q8_0", ("--kv-type", "q8_0", "--flash-attn")),
        ("flash", ("--flash-attn",)),
    ):
        output = tmp_path / f"{name}.h5"
        outcome = run(
            "record", model, "-p", "that is the", "-n", 2, "--engine", "llama.cpp", *options, "-o", output
        )
        assert outcome.code == 0, outcome.err
        assert outcome.err == ""
        with Trace(output) as trace, Trace(tmp_path / "f32.h5") as exact:
            flash = "--flash-attn" in options
            assert trace.header.settings["flash"] == flash
            assert trace.header.settings["kv"] == ("q8_0" if name == "q8_0" else "f32")
            assert (Key(0, "scores") in trace) == (not flash)
            errors.append(max(distances(trace, exact, "attn").values()) if flash else 0)
    assert errors[1] > errors[2] > 0
    assert errors[1] < 5e-2


@pytest.mark.llamacpp
def test_another_tokeniser_is_told(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensortrace.tracer.tokenizer import Tokenizer

    monkeypatch.setattr(Tokenizer, "encode", lambda self, text, **options: [5, 6])
    ask = ("-p", "that is", "-n", 1, "--engine", "llama.cpp", "-o", tmp_path / "a.h5")
    outcome = run("record", tiny, *ask)
    assert outcome.code == 0
    assert "llama.cpp's tokeniser makes" in outcome.err


def test_options_of_llama_cpp_are_refused_elsewhere(tiny: Path, tmp_path: Path) -> None:
    for option in (("--flash-attn",), ("--kv-type", "f16")):
        outcome = run("record", tiny, "-p", "the", *option, "-o", tmp_path / "a.h5")
        assert (outcome.code, "are for --engine llama.cpp" in outcome.err) == (2, True)
    assert not (tmp_path / "a.h5").exists()
