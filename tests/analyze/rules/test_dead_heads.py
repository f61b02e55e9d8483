import numpy as np
import pytest
from rule_traces import attention, found, skipped, spec, write
from tensortrace.tracer.stats import specs, summarize


@pytest.mark.parametrize("name", ["q", "k", "v", "attn"])
def test_a_head_of_zeros(tmp_path, name):
    arrays = attention()
    arrays[name] = arrays[name].copy()
    arrays[name][:, 1] = 0
    (finding,) = found(write(tmp_path / "t.h5", arrays), "dead_heads")
    assert (finding.severity, finding.tensor) == ("error", name)
    assert finding.evidence["details"][0]["heads"] == [1]


def test_of_lengths(tmp_path):
    q = attention()["q"].copy()
    q[:, 2] = 0
    declared = spec("q", q)
    made = {k.name: values for k, values in summarize(declared, q).items()}
    more = {s.key.name: {"axes": s.axes} for s in specs(declared)}
    (finding,) = found(write(tmp_path / "t.h5", made, declared=more), "dead_heads")
    assert finding.tensor == "q"


@pytest.mark.parametrize(("name", "pair"), [("q", [0, 3]), ("k", [0, 1]), ("attn", [1, 2])])
def test_heads_that_are_copies(tmp_path, name, pair):
    arrays = attention()
    arrays[name] = arrays[name].copy()
    arrays[name][:, pair[1]] = arrays[name][:, pair[0]]
    (finding,) = found(write(tmp_path / "t.h5", arrays), "dead_heads")
    assert finding.evidence["details"][0]["pairs"] == [pair]


def test_heads_of_one_kv_head_may_agree(tmp_path):
    """Both attend to the sink alone."""
    arrays = attention()
    arrays["attn"] = arrays["attn"].copy()
    arrays["attn"][:, 1] = arrays["attn"][:, 0]
    assert not found(write(tmp_path / "t.h5", arrays), "dead_heads")


def test_quiet_on_a_model(record_tiny):
    assert not found(record_tiny(n_new=4), "dead_heads")
    assert not found(record_tiny(n_new=4, storage="bfloat16"), "dead_heads")


def test_one_token_again_and_again_tells_nothing(tmp_path):
    arrays = {"attn": np.ones((12, 4, 16), np.float32)}
    assert "differ" in skipped(write(tmp_path / "t.h5", arrays, tokens=[7] * 12), "dead_heads")
