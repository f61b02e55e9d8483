import json
from dataclasses import replace

import pytest
from commands import run
from tensortrace.tracer import hub


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORTRACE_CACHE", str(tmp_path))
    return tmp_path / "tensortrace"


def test_the_list():
    told = run("models").out
    assert "smollm2-135m (default)" in told
    assert "Gemma Terms of Use" in told
    assert "trace pull NAME" in told


def test_json_and_what_is_here(cache, monkeypatch):
    known = hub.KNOWN["smollm2-135m"]
    path = cache / "models" / known.filename
    path.parent.mkdir(parents=True)
    path.write_bytes(b"model")
    monkeypatch.setitem(hub.KNOWN, known.name, replace(known, size=5, sha256=hub.digest(path)))
    data = {entry["name"]: entry for entry in json.loads(run("models", "--json", "-").out)}
    assert data["smollm2-135m"]["path"] == str(path)
    assert data["gemma3-270m"]["path"] is None
    assert run("pull", "smollm2-135m").out == f"{path}\n"
