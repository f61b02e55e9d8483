"""`trace compare` as a command: exit codes, outputs, mistakes."""

import json
import re
import subprocess
import sys
from pathlib import Path

import h5py
import pytest
import typer
from ggufs import write_gguf
from tensortrace.analyze.cause import Injection
from tensortrace.tracer.cli.compare import command
from tensortrace.tracer.errors import TraceError, UserError
from tensortrace.tracer.trace import Trace
from typer.testing import CliRunner

app = typer.Typer()
app.command()(command)


def run(*arguments: object):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def healthy(record_tiny) -> Path:
    return record_tiny(n_new=2).path


@pytest.fixture
def faulty(record_tiny) -> Path:
    return record_tiny(n_new=2, change=Injection.parse("kv_slot").apply).path


def test_exit_codes(record_tiny, healthy, faulty):
    assert run(healthy, healthy).exit_code == 0
    assert run(record_tiny(n_new=2, softmax="two-pass").path, healthy).exit_code == 0
    assert run(faulty, healthy).exit_code == 1
    assert run(record_tiny(ids=[1, 2]).path, healthy).exit_code == 2


def test_an_architecture_that_cannot_be_replayed(healthy, faulty, tmp_path):
    """Two of its traces are compared all the same; the model's ops cannot be asked what went wrong."""
    for path in (healthy, faulty):
        with h5py.File(path, "r+") as file:
            file.attrs["architecture"] = "unheard-of"
    assert run(healthy, healthy).exit_code == 0
    told = run(faulty, healthy)
    assert told.exit_code == 1
    assert "DIVERGED" in told.output
    model = write_gguf(tmp_path / "model.gguf", "unheard-of")
    told = run(faulty, healthy, "--model", model)
    assert told.exit_code == 1
    said = " ".join(told.output.split())
    assert "DIVERGED" in said
    assert re.search(r"not replayed: .*'unheard-of' is not supported: gemma2, .*qwen3", said)


def test_a_report_when_piped(healthy, faulty):
    text = run(faulty, healthy).output
    assert "The first divergence is L00 scores" in text
    assert "\x1b" not in text
    assert len(run(faulty, healthy, "--all").output) > len(text)


def test_json_alone_on_standard_output(healthy, faulty):
    result = run(faulty, healthy, "--json", "-")
    assert json.loads(result.stdout)["first_divergence"]["tensor"] == "scores"
    assert result.exit_code == 1


def test_files(tmp_path, healthy, faulty):
    result = run(faulty, healthy, "-q", "--json", tmp_path / "c.json", "--markdown", tmp_path / "c.md")
    assert (result.exit_code, result.output) == (1, "")
    assert json.loads((tmp_path / "c.json").read_text())["verdict"] == "diverged"
    assert (tmp_path / "c.md").read_text().startswith("# Trace comparison")


@pytest.mark.parametrize("place", ["scores@0", "scores@0:0", "logits", "logits:0"])
def test_explain(healthy, faulty, place):
    result = run(faulty, healthy, "--explain", place)
    assert result.exit_code == 1
    assert "is the sum of" in result.output
    assert "measured: NRMSE" in result.output


@pytest.mark.parametrize("place", ["q@x", "q@0:y", "nothing", "q@99", "q@0:99"])
def test_explain_what_is_not_there(healthy, place):
    with pytest.raises(UserError):
        run(healthy, healthy, "--explain", place)


def test_explain_needs_a_comparison(record_tiny, healthy):
    with pytest.raises(UserError, match="different token ids"):
        run(record_tiny(ids=[1, 2]).path, healthy, "--explain", "q@0")


def test_unreadable_traces(tmp_path, healthy):
    (tmp_path / "empty").touch()
    for path in (tmp_path / "missing", tmp_path / "empty"):
        with pytest.raises(TraceError):
            run(healthy, path)


def test_called_from_python(healthy, faulty):
    with pytest.raises(typer.Exit) as exit:
        command(faulty, healthy, model=None)
    assert exit.value.exit_code == 1


def test_help_has_an_example():
    assert "trace compare ours.h5 reference.h5" in run("--help").output


def test_the_command_imports_nothing_heavy_until_it_runs():
    code = "import sys, tensortrace.tracer.cli.compare; print({'numpy', 'h5py'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_traces_are_closed(healthy, faulty, monkeypatch):
    closed = []
    monkeypatch.setattr(Trace, "close", lambda self: closed.append(self.path))
    run(faulty, healthy)
    assert closed == [healthy, faulty]
