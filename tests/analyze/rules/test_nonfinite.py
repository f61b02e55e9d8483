import numpy as np
import pytest
from rule_traces import attention, found, key, spec, write
from tensortrace.tracer.stats import specs, summarize


def test_the_first_tensor_is_told_and_the_rest_inherits(tmp_path):
    arrays = attention()
    q, probs = arrays["q"].copy(), arrays["probs"].copy()
    q[5, 2, 3] = np.nan
    probs[:, 5:] = np.nan
    finding, *others = found(write(tmp_path / "t.h5", arrays | {"q": q, "probs": probs}), "nonfinite")
    assert not others
    assert (finding.severity, finding.layer, finding.tensor, finding.value) == ("error", 0, "q", 1)
    assert "from token 5 on" in finding.message
    assert {entry["tensor"] for entry in finding.evidence["details"]} == {"q", "probs"}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_infinity_says_where_storage_may_be_the_reason(tmp_path, dtype):
    resid = np.ones((12, 8), np.float32)
    resid[3, 1] = np.inf
    (finding,) = found(write(tmp_path / "t.h5", {"resid_out": resid}, dtype=dtype), "nonfinite")
    assert "infinity" in finding.message
    assert ("65504" in finding.message) == (dtype == "float16")


def test_masks_are_no_overflow(tmp_path):
    arrays = attention()
    assert np.isneginf(arrays["scores"]).any()
    assert not found(write(tmp_path / "t.h5", arrays), "nonfinite")
    scores = arrays["scores"].copy()
    scores[1, 4, 2] = np.inf
    (finding,) = found(write(tmp_path / "u.h5", arrays | {"scores": scores}), "nonfinite")
    assert finding.value == 1


def test_what_lies_behind_the_layers_is_not_the_first(tmp_path):
    nan = np.full((12, 8), np.nan, np.float32)
    (finding,) = found(write(tmp_path / "t.h5", {"2 ffn_out": nan, "logits": nan}), "nonfinite")
    assert (finding.layer, finding.tensor) == (2, "ffn_out")


def test_of_statistics(tmp_path):
    scores = attention()["scores"].copy()
    declared = spec("scores", scores)
    for nan in (0, 3):
        scores[0, 6, :nan] = np.nan
        made = {str(k.name): values for k, values in summarize(declared, scores).items()}
        more = {s.key.name: {"axes": s.axes} for s in specs(declared)}
        findings = found(write(tmp_path / f"{nan}.h5", made, declared=more), "nonfinite")
        assert [(f.tensor, f.value) for f in findings] == ([("scores", 3)] if nan else [])
    assert key("scores").layer == 0
