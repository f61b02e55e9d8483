"""Choosing an importer, the options of all of them, and `trace import` itself."""

from pathlib import Path

import numpy as np
import pytest
from dumps import refused
from tensortrace.tracer.axes import Heads
from tensortrace.tracer.errors import UserError
from tensortrace.tracer.gguf import Model
from tensortrace.tracer.importer import Options, choose, import_dump, importers
from tensortrace.tracer.names import Key
from tensortrace.tracer.trace import Trace
from typer import Typer
from typer.testing import CliRunner


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two steps of a model with 4 heads of 16 on 2 KV heads."""
    for step, rows in enumerate((5, 1)):
        path = tmp_path / "dump" / f"step{step}"
        path.mkdir(parents=True)
        np.save(path / "embd.npy", np.full((rows, 64), step, np.float32))
        np.save(path / "layers.0.q.npy", np.full((rows, 64), step, np.float32))
        np.save(path / "mine.npy", np.full((rows, 2), step, np.float32))
    return tmp_path / "dump"


OPTIONS = {"pattern": "step{step}/{name}.npy"}


def test_every_format_says_what_it_is() -> None:
    formats = importers()
    assert set(formats) == {
        *("llama.cpp", "manifest", "msprobe", "npy", "npz", "pt", "regex", "safetensors", "sglang", "ttr")
    }
    for importer in formats.values():
        assert importer.SUMMARY
        assert "\n" not in importer.SUMMARY


def test_a_format_can_be_forced(folder: Path) -> None:
    assert choose(folder, Options()).FORMAT == "npy"
    assert choose(folder, Options(format="npz")).FORMAT == "npz"
    assert choose(folder, Options(regex="x")).FORMAT == "regex"
    with pytest.raises(UserError, match="--format x: one of llama"):
        choose(folder, Options(format="x"))


def test_what_could_be_several_formats_must_be_named(folder: Path) -> None:
    np.savez(folder / "more.npz", embd=np.ones((5, 64)))
    with pytest.raises(UserError, match="could be npy, npz: choose with --format"):
        choose(folder, Options())


def test_sources_that_are_none(tmp_path: Path) -> None:
    refused(tmp_path / "nothing", "no such file or folder")
    refused(tmp_path, "in no format that is recognised")
    (tmp_path / "a.txt").write_text("hello")
    refused(tmp_path / "a.txt", "name it with --format")
    refused(Path("/dev/null"), "neither a file nor a folder")
    np.save(tmp_path / "q.npy", np.ones((2, 4, 8)))
    with pytest.raises(UserError, match="is the source itself"):
        import_dump(tmp_path / "q.npy", tmp_path / "q.npy", Options())


def test_the_model_gives_heads_and_facts(folder: Path, tiny_model: Model, tmp_path: Path) -> None:
    import_dump(
        folder, tmp_path / "a.h5", Options(**OPTIONS, model=tiny_model, engine="mine", tokens=range(9))
    )
    with Trace(tmp_path / "a.h5") as trace:
        assert trace.read(Key(0, "q"), 0).shape == (5, 4, 16)
        assert trace.header.model_sha256 == tiny_model.sha256
        assert trace.header.engine == "mine"
        assert trace.header.settings == {"imported": "npy", "source": "dump"}
        assert list(trace.tokens) == [0, 1, 2, 3, 4, 5]


def test_too_few_ids(folder: Path) -> None:
    refused(folder, "step 0 has 5 tokens and 3 ids", **OPTIONS, tokens=(1, 2, 3))


def test_steps(folder: Path, tmp_path: Path) -> None:
    import_dump(folder, tmp_path / "a.h5", Options(**OPTIONS, steps="1", heads=Heads(4, 2)))
    with Trace(tmp_path / "a.h5") as trace:
        assert [(step.start, step.n_tokens) for step in trace.steps] == [(5, 1)]
        assert (trace.read(Key(0, "q"), 0) == 1).all()
    refused(folder, "nothing to import", **OPTIONS, steps="7")


def test_escape_sequences_in_names_do_not_act(tmp_path: Path) -> None:
    (tmp_path / "dump").mkdir()
    (tmp_path / "dump" / "q\x1b[31m.npy").write_bytes(b"no array")
    with pytest.raises(UserError) as caught:
        import_dump(tmp_path / "dump", tmp_path / "a.h5", Options())
    assert "\x1b" not in str(caught.value)


# ---- the command


def run(*arguments: object) -> tuple[int, str, str]:
    from importlib import import_module

    app = Typer()
    app.command()(import_module("tensortrace.tracer.cli.import_").command)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        return 2, "", str(result.exception)
    return result.exit_code, result.stdout, result.stderr


def test_the_command(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "a.h5"
    code, out, err = run(folder, "-o", output, "--pattern", OPTIONS["pattern"], "--heads", 4)
    assert code == 0
    assert "3 tensors, 2 steps" in out
    assert "names kept as they are: mine" in err
    assert Trace(output).complete
    assert run(folder, "-o", output, "--pattern", OPTIONS["pattern"], "-q") == (0, "", "")


def test_the_list_of_formats() -> None:
    code, out, _ = run("--list")
    assert code == 0
    for name, importer in importers().items():
        assert name in out
        assert importer.SUMMARY[:40] in out
    assert "[files]" in run("--list", "--format", "npz")[1]
    assert "[[tensor]]" in run("--list", "--format", "manifest")[1]
    assert "one of llama.cpp" in run("--list", "--format", "x")[2]


def test_mistakes_on_the_command_line(folder: Path) -> None:
    assert run()[0] == 2
    assert "ids such as 1,2,3" in run(folder, "--tokens", "1,x")[2]
    assert run(folder, "--heads", 0)[0] == 2


def test_help_shows_the_examples() -> None:
    code, out, _ = run("--help")
    assert code == 0
    assert "(?P<name>" in out
