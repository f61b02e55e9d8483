from dataclasses import replace

import numpy as np
import pytest
from rule_traces import HEADER, attention, found, skipped, write
from tensortrace.analyze.cause import Injection


def stretched(times, name="q", tokens=12):
    arrays = attention(tokens=tokens)
    arrays[name] = arrays[name] * np.float32(times)
    return arrays


@pytest.mark.parametrize(("name", "times"), [("q", 6.4), ("k", 6.4), ("v", 0.1), ("scores", 8.0)])
@pytest.mark.parametrize("seed", [0, 1])
def test_another_size_than_the_healthy_trace(tmp_path, name, times, seed):
    healthy = write(tmp_path / "h.h5", attention(), tokens=range(seed, seed + 12))
    broken = write(tmp_path / "b.h5", stretched(times, name), tokens=range(12))
    (finding,) = found(broken, "magnitude_baseline", baseline=healthy)
    assert (finding.severity, finding.tensor) == ("warning", name)
    assert f"{times:.3g} times the baseline" in finding.message


def test_other_texts_differ_by_less(tmp_path):
    a = write(tmp_path / "a.h5", stretched(1.8))
    b = write(tmp_path / "b.h5", attention(tokens=20, seed=3), n_prompt=20)
    assert not found(a, "magnitude_baseline", baseline=b)
    assert not found(b, "magnitude_baseline", baseline=a)


def test_of_statistics(record_tiny):
    healthy = record_tiny(n_new=4)
    assert not found(record_tiny(n_new=4, stats_only=True), "magnitude_baseline", baseline=healthy)
    broken = record_tiny(n_new=4, stats_only=True, change=Injection.parse("attn_scale=3").apply)
    findings = found(broken, "magnitude_baseline", baseline=healthy)
    assert {f.tensor for f in findings} == {"scores"}


def test_a_baseline_of_another_model(tmp_path):
    ours = write(tmp_path / "a.h5", attention())
    for change, why in (
        ({"architecture": "qwen2"}, "architecture"),
        ({"model_sha256": "b"}, "another model"),
    ):
        theirs = write(tmp_path / "b.h5", attention(), header=replace(HEADER, **change))
        mine = write(tmp_path / "c.h5", attention(), header=replace(HEADER, model_sha256="a"))
        assert why in skipped(mine, "magnitude_baseline", baseline=theirs)
    assert skipped(ours, "magnitude_baseline") == "needs --baseline"


def test_too_few_tokens(tmp_path):
    a = write(tmp_path / "a.h5", attention(tokens=4), n_prompt=4)
    assert "enough tokens" in skipped(a, "magnitude_baseline", baseline=a)
