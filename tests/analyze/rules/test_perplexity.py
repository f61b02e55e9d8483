"""The text under the reference's logits: figures by hand, and on a real model."""

import math

import numpy as np
import pytest
from recording import record_trace
from rule_traces import found, skipped, text, write
from tensortrace.analyze.cause import Injection
from tensortrace.tracer.sampling import Sampling
from tensortrace.tracer.selection import Selection
from tensortrace.tracer.trace import Trace

VOCABULARY = 50
LOGITS = Selection(tensors="logits")


def logits(path, favoured, strength, generated=(1,), **more):
    """A trace of 12 prompt tokens whose logits favour one token in each row."""
    rows = np.zeros((12, VOCABULARY), np.float32)
    rows[np.arange(12), favoured] = strength
    return write(path, {"logits": rows}, tokens=range(12), generated=list(generated), **more)


def test_the_perplexity_of_a_token(tmp_path):
    """1 / softmax, of one logit s among V - 1 zeros: (V - 1 + e^s) / e^s for it, V - 1 + e^s for another."""
    reference = logits(tmp_path / "b.h5", np.arange(1, 13), 9.0, [12])
    ours = logits(tmp_path / "a.h5", np.arange(1, 13), 9.0, [7])
    (finding,) = found(ours, "perplexity", baseline=reference)
    assert finding.tensor == "tokens"
    assert finding.value == pytest.approx(VOCABULARY - 1 + math.exp(9), rel=1e-6)
    assert "1 token judged" in finding.message
    assert not found(reference, "perplexity", baseline=ours)


def test_a_prompt_that_ours_predicts_worse(tmp_path):
    reference = logits(tmp_path / "b.h5", np.arange(1, 13), 9.0, [12])
    ours = logits(tmp_path / "a.h5", np.arange(1, 13), 1.0, [12])
    (finding,) = found(ours, "perplexity", baseline=reference)
    assert finding.tensor == "logits"
    assert finding.value == pytest.approx((VOCABULARY - 1 + math.e) / math.e, rel=1e-6)


def test_a_near_tie_is_no_surprise(tmp_path):
    """Both choices are as likely: greedy texts may part here."""
    rows = np.zeros((12, VOCABULARY), np.float32)
    rows[:, [7, 8]] = 9.0, 9.001
    a, b = (
        write(tmp_path / f"{token}.h5", {"logits": rows}, tokens=range(12), generated=[token])
        for token in (7, 8)
    )
    assert not found(a, "perplexity", baseline=b)


def test_who_cannot_be_judged(tmp_path):
    a = text(tmp_path / "a.h5", [5, 6], prompt=[1, 2, 3])
    b = text(tmp_path / "b.h5", [5, 6], prompt=[3, 2, 1])
    assert "another prompt" in skipped(a, "perplexity", baseline=b)
    assert "--baseline" in skipped(a, "perplexity")
    bare = write(tmp_path / "c.h5", {"q": np.ones((12, 4, 16), np.float32)})
    assert "no logits" in skipped(bare, "perplexity", baseline=bare)


def test_quiet_on_a_model(record_tiny):
    a = record_tiny(n_new=9, dtype="float64")
    assert not found(a, "perplexity", baseline=record_tiny(n_new=9, chunk=4))


@pytest.mark.slow
def test_on_a_real_model(smollm2_model, tmp_path):
    """Quiet on samples at temperature 1, and on faults that leave the text alone; not on those that don't."""
    ids = [504, 3575, 282, 4649, 314, 7042, 30, 330, 26832, 35864, 2674, 42, 2375, 3831]

    def recorded(name, fault=None, **more):
        change = Injection.parse(fault).apply if fault else lambda graph: graph
        record_trace(smollm2_model, tmp_path / name, ids, n_new=8, selection=LOGITS, change=change, **more)
        return Trace(tmp_path / name)

    healthy = recorded("healthy.h5")
    for seed in range(3):
        sampled = recorded(f"{seed}.h5", sampling=Sampling(temperature=1.0, seed=seed))
        assert not found(sampled, "perplexity", baseline=healthy)
    for fault in ("norm_plus_one", "gqa_map", "attn_scale"):
        tensors = {
            finding.tensor for finding in found(recorded("f.h5", fault), "perplexity", baseline=healthy)
        }
        assert "logits" in tensors
    assert not found(recorded("f.h5", "norm_eps=1e-3"), "perplexity", baseline=healthy)
