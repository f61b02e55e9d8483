import hashlib
import os
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from ggufs import write_gguf
from tensortrace.tracer import hub
from tensortrace.tracer.errors import ModelError
from tensortrace.tracer.gguf import Model


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("TENSORTRACE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tensortrace"


@pytest.fixture
def known(tmp_path, monkeypatch) -> hub.KnownModel:
    """A model known as `tiny`, in two parts of which each comes in a wheel of its own."""
    content = write_gguf(tmp_path / "whole.gguf", layers=1).read_bytes()
    model = hub.KnownModel(
        name="tiny",
        package="pkg",
        version="1.2",
        files=(("pkg-a", "pkg_a/x.part0"), ("pkg-b", "pkg_b/x.part1")),
        filename="tiny.gguf",
        size=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        licence="MIT",
        note="",
    )
    monkeypatch.setitem(hub.KNOWN, "tiny", model)
    monkeypatch.setattr(hub, "DEFAULT", "tiny")
    return model


@pytest.fixture
def pip(known, tmp_path, monkeypatch) -> list[str]:
    """In place of pip: writes the wheels of `tiny`; what was asked for is in the list."""
    content = (tmp_path / "whole.gguf").read_bytes()
    halves = {
        "pkg-a==1.2": ("pkg_a/x.part0", content[:5000]),
        "pkg-b==1.2": ("pkg_b/x.part1", content[5000:]),
    }
    asked = []

    def download(requirement: str, folder: Path) -> Path:
        asked.append(requirement)
        wheel = folder / "any.whl"
        with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(*halves[requirement])
        return wheel

    monkeypatch.setattr(hub, "_download", download)
    return asked


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_pull_joins_checks_and_keeps(pip, known, cache):
    lines = []
    assert hub.cached("tiny") is None
    path = hub.pull("tiny", lines.append)
    assert path == cache / "models" / "tiny.gguf" == hub.cached("tiny")
    assert Model(path).sha256 == known.sha256
    assert pip == ["pkg-a==1.2", "pkg-b==1.2"]
    assert "part 2 of 2" in lines[1]
    assert lines[-1] == f"tiny is ready: {path}"
    assert files_in(cache / "models") == ["tiny.gguf"]

    assert hub.pull("tiny", lines.append) == path
    assert len(pip) == 2


def test_a_spoiled_file_is_fetched_again(pip, known, cache):
    path = hub.pull("tiny")
    path.write_bytes(b"x" * known.size)
    os.utime(path, ns=(0, 0))  # the clock of a file system may be coarser than this test is quick
    assert hub.cached("tiny") is None
    hub.pull("tiny")
    assert hub.cached("tiny") == path
    path.write_bytes(b"short")
    assert hub.cached("tiny") is None


def test_looking_again_does_not_hash_again(pip, monkeypatch):
    path = hub.pull("tiny")
    monkeypatch.setattr(hub, "_sha256", lambda path: pytest.fail("hashed again"))
    assert hub.cached("tiny") == path


def test_two_pulls_at_once(pip, known, cache):
    with ThreadPoolExecutor(4) as threads:
        assert len(set(threads.map(hub.pull, ["tiny"] * 4))) == 1
    assert files_in(cache / "models") == ["tiny.gguf"]
    assert hub.cached("tiny") is not None


def test_what_is_not_the_expected_file_is_not_kept(pip, known, cache, monkeypatch):
    monkeypatch.setitem(hub.KNOWN, "tiny", replace(known, sha256="0" * 64))
    with pytest.raises(ModelError, match=f"SHA-256 {known.sha256}, not 0000"):
        hub.pull("tiny")
    assert files_in(cache / "models") == []


def test_wheels_that_do_not_hold_the_file(pip, known, cache, monkeypatch):
    monkeypatch.setitem(hub.KNOWN, "tiny", replace(known, files=(("pkg-a", "pkg_a/other"),)))
    with pytest.raises(ModelError, match=r"any\.whl holds no pkg_a/other"):
        hub.pull("tiny")

    def broken(requirement: str, folder: Path) -> Path:
        (folder / "any.whl").write_bytes(b"no zip")
        return folder / "any.whl"

    monkeypatch.setattr(hub, "_download", broken)
    with pytest.raises(ModelError, match=r"any\.whl is damaged"):
        hub.pull("tiny")
    assert files_in(cache / "models") == []


def test_a_cache_that_cannot_be_written(pip, cache):
    cache.parent.mkdir()
    cache.write_text("a file where a folder should be")
    with pytest.raises(ModelError, match="tiny cannot be stored in"):
        hub.pull("tiny")


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (
            "echo fine; echo 'ERROR: No matching distribution found' >&2; echo '[notice] new pip'; exit 1",
            "No matching",
        ),
        ("echo odd; exit 3", "odd"),
        ("exit 3", "it said nothing"),
        ("echo Saved; exit 0", "Saved"),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for Python is a shell script")
def test_pip_fails(known, tmp_path, monkeypatch, script, said):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(
        ModelError, match=rf"pip could not fetch pkg-a==1\.2 \(is the network reachable\?\): {said}"
    ):
        hub.pull("tiny")


def test_no_pip(known, monkeypatch):
    monkeypatch.setattr(hub, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="ensurepip"):
        hub.pull("tiny")


def test_resolve(pip, tmp_path, monkeypatch):
    path = tmp_path / "whole.gguf"
    monkeypatch.chdir(tmp_path)
    assert hub.resolve(str(path)) == path
    assert hub.resolve("whole.gguf") == Path("whole.gguf")
    assert pip == []
    assert hub.resolve() == hub.resolve(None) == hub.resolve("tiny") == hub.cached("tiny")
    for missing in ("none.gguf", "some/where"):
        with pytest.raises(ModelError, match=f"{missing} does not exist"):
            hub.resolve(missing)


@pytest.mark.parametrize("ask", [hub.resolve, hub.pull, hub.cached])
def test_unknown_names(ask):
    with pytest.raises(ModelError) as caught:
        ask("SmolLM-135m")
    assert "is smollm2-135m meant?" in str(caught.value)
    assert "known are smollm2-135m, gemma3-270m; the path of a GGUF works too" in str(caught.value)
    with pytest.raises(ModelError, match="no model is known as zzz: known are"):
        ask("zzz")


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.delenv("TENSORTRACE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert hub.cache_folder() == tmp_path / "tensortrace"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert hub.cache_folder() == Path.home() / ".cache" / "tensortrace"


def test_the_table():
    assert hub.DEFAULT in hub.KNOWN
    for name, model in hub.KNOWN.items():
        assert name == model.name
        assert len(model.sha256) == 64
        assert model.size > 0
        assert model.filename.endswith(".gguf")


def test_sha256_is_remembered_until_the_file_changes(tmp_path, monkeypatch):
    path = write_gguf(tmp_path / "m.gguf")
    first = hub.digest(path)
    assert first == hub._sha256(path)
    with monkeypatch.context() as patch:
        patch.setattr(hub, "_sha256", lambda path: pytest.fail("hashed again"))
        assert hub.digest(path) == first
        (tmp_path / "link.gguf").symlink_to(path)
        assert Model(tmp_path / "link.gguf").sha256 == first
    write_gguf(path, seed=1)
    os.utime(path, ns=(0, 0))
    assert hub.digest(path) != first


@pytest.mark.parametrize("spoiled", ["[]", "{}", "7", "not json", '["/elsewhere", 1, 2, "abc"]'])
def test_a_spoiled_stamp_is_ignored(tmp_path, spoiled):
    path = write_gguf(tmp_path / "m.gguf")
    first = hub.digest(path)
    (stamp,) = (hub.cache_folder() / "hashes").iterdir()
    stamp.write_text(spoiled)
    assert hub.digest(path) == first


def test_sha256_without_a_usable_cache(tmp_path, monkeypatch):
    path = write_gguf(tmp_path / "m.gguf")
    monkeypatch.setenv("TENSORTRACE_CACHE", str(path))  # a file where a folder should be
    assert hub.digest(path) == hub._sha256(path)
