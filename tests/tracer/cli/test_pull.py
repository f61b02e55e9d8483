import pytest
from commands import run
from tensortrace.tracer import hub


@pytest.fixture
def pulled(monkeypatch, tmp_path):
    asked = []

    def pull(name, progress):
        asked.append(name)
        progress(f"fetching {name}")
        return tmp_path / f"{name}.gguf"

    monkeypatch.setattr(hub, "pull", pull)
    return asked


def test_the_path_goes_to_stdout_and_progress_elsewhere(pulled, tmp_path):
    outcome = run("pull", "gemma3-270m")
    assert outcome.out == f"{tmp_path}/gemma3-270m.gguf\n"
    assert outcome.err == "fetching gemma3-270m\n"


def test_the_default_and_quiet(pulled):
    assert run("pull", "-q").err == ""
    assert pulled == [hub.DEFAULT]


def test_unknown_names():
    outcome = run("pull", "smollm")
    assert (outcome.code, len(outcome.err.splitlines())) == (2, 1)
    assert "smollm2-135m" in outcome.err
