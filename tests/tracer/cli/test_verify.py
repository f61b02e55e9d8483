"""`trace verify` as a command: exit codes, outputs, mistakes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from commands import run
from tensortrace.analyze.cause import Injection
from tensortrace.tracer.selection import Selection


@pytest.fixture
def healthy(record_tiny) -> Path:
    return record_tiny(n_new=2).path


@pytest.fixture
def faulty(record_tiny) -> Path:
    return record_tiny(n_new=2, change=Injection.parse("kv_slot").apply).path


def test_exit_codes(record_tiny, tiny, healthy, faulty):
    assert run("verify", healthy, "--model", tiny).code == 0
    assert run("verify", faulty, "--model", tiny).code == 1
    nothing = record_tiny(stats_only=True, selection=Selection(tensors="q")).path
    assert run("verify", nothing, "--model", tiny).code == 2
    assert run("verify", healthy, "--model", tiny.with_name("missing.gguf")).code == 2


def test_a_report_when_piped(tiny, healthy, faulty):
    good, bad = run("verify", healthy, "--model", tiny).out, run("verify", faulty, "--model", tiny).out
    assert "VERIFIED  33 of 33 operations do what the model says" in good
    assert "FAULTY  The first fault is in step 0 (prefill): L00 scores" in bad
    assert "cause: kv_slot" in bad
    assert "\x1b" not in bad
    assert len(run("verify", faulty, "--model", tiny, "--all").out) > len(bad)


def test_json_has_the_keys_of_compare(tiny, faulty):
    outcome = run("verify", faulty, "--model", tiny, "--json", "-")
    found = json.loads(outcome.out)
    assert outcome.code == 1
    keys = {"verdict", "scenario", "first_divergence", "causes", "coverage", "tensors"}
    assert keys <= set(found)
    assert found["verdict"] == "diverged"
    place = {"step": 0, "layer": 0, "tensor": "scores", "op": "attention"}
    assert found["first_divergence"] == place
    assert found["causes"][0]["id"] == "kv_slot"
    row = next(row for row in found["tensors"] if row["status"] == "diverged")
    assert row["added"] > row["noise"] > 0
    assert row["segment"] == ["L00 attn"]


def test_markdown(tmp_path, tiny, healthy, faulty):
    for path, verdict in ((healthy, "verified"), (faulty, "faulty")):
        assert run("verify", path, "--model", tiny, "-q", "--markdown", tmp_path / "v.md").out == ""
        assert f"## Verdict: {verdict}" in (tmp_path / "v.md").read_text()
    assert "| `kv_slot` | 100.00% |" in (tmp_path / "v.md").read_text()


def test_what_little_was_recorded_allows_is_said(record_tiny, tiny):
    few = record_tiny(selection=Selection(tensors="q_rope,scores,logits")).path
    out = run("verify", few, "--model", tiny).out
    assert "0 one by one, the others in segments of up to" in out


def test_the_command_imports_nothing_heavy_until_it_runs():
    code = "import sys, tensortrace.tracer.cli.verify; print({'numpy', 'h5py'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
