import json

import pytest
from commands import run
from tensortrace.analyze.cause import Injection


@pytest.fixture
def healthy(record_tiny):
    return record_tiny(n_new=3).path


@pytest.fixture
def broken(record_tiny):
    return record_tiny(n_new=3, change=Injection.parse("attn_scale").apply).path


def test_exit_codes(healthy, broken, tmp_path):
    assert run("anomalies", healthy).code == 0
    assert run("anomalies", broken).code == 1
    missing = run("anomalies", tmp_path / "none.h5")
    assert (missing.code, len(missing.err.splitlines())) == (2, 1)


def test_what_it_prints(healthy, broken):
    assert "Nothing wrong" in run("anomalies", healthy).out
    told = run("anomalies", broken).out
    assert "scores_qk" in told
    assert "needs --model" in told


def test_baseline_and_model_are_used(broken, healthy, tiny):
    told = run("anomalies", broken, "--baseline", healthy, "--model", tiny).out
    assert "times the baseline's" in told
    assert "--model" not in told


@pytest.mark.parametrize("option", [("--json", "-"), ("-q",)])
def test_quiet_and_json(broken, option):
    outcome = run("anomalies", broken, *option)
    assert outcome.code == 1
    if option == ("-q",):
        assert outcome.out == ""
    else:
        data = json.loads(outcome.out)
        assert data["findings"][0]["rule"] == "scores_qk"


def test_json_to_a_file_beside_the_table(broken, tmp_path):
    outcome = run("anomalies", broken, "--json", tmp_path / "f.json")
    assert "scores_qk" in outcome.out
    assert json.loads((tmp_path / "f.json").read_text())["findings"]


def test_a_model_passed_as_a_trace(tiny):
    assert "GGUF model, not a trace" in run("anomalies", tiny).err
