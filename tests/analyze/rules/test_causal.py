from dataclasses import replace

import numpy as np
import pytest
from rule_traces import HEADER, attention, found, skipped, write
from tensortrace.analyze.cause import Injection


@pytest.mark.parametrize("left_out", [(), ("probs",), ("probs", "m", "l")])
def test_a_missing_mask(tmp_path, left_out):
    for causal in (True, False):
        arrays = {name: a for name, a in attention(causal=causal).items() if name not in left_out}
        findings = found(write(tmp_path / f"{causal}.h5", arrays), "causal")
        assert [f.tensor for f in findings] == ([] if causal else ["scores" if left_out else "probs"])


@pytest.mark.parametrize("stats_only", [False, True])
def test_injected(record_tiny, stats_only):
    assert not found(record_tiny(n_new=3, chunk=4, stats_only=stats_only), "causal")
    fault = Injection.parse("causal_mask@1").apply
    (finding,) = found(record_tiny(n_new=3, change=fault, stats_only=stats_only), "causal")
    assert (finding.severity, finding.layer, finding.evidence["steps"]) == ("error", 1, "0")


def test_a_large_negative_number_is_a_mask_too(tmp_path):
    arrays = attention()
    scores = np.where(np.isneginf(arrays["scores"]), np.finfo(np.float32).min, arrays["scores"])
    assert not found(write(tmp_path / "t.h5", {"scores": scores}), "causal")


def test_models_that_look_both_ways(tmp_path):
    header = replace(HEADER, architecture="bert", hyperparameters={"bert.attention.causal": False})
    trace = write(tmp_path / "t.h5", attention(causal=False), header=header)
    assert "not causal" in skipped(trace, "causal")


def test_nothing_to_judge_in_one_token(record_tiny):
    assert "no recorded row" in skipped(record_tiny([65], n_new=3), "causal")
