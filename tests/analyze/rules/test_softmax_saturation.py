import numpy as np
import pytest
from rule_traces import attention, found, skipped, write


def only(arrays, *names):
    return {name: arrays[name] for name in names}


@pytest.mark.parametrize("names", [("probs",), ("l",), ("probs", "l")])
def test_scores_that_are_too_large(tmp_path, names):
    arrays = only(attention(tokens=40, dim=64, scale=60.0), *names)
    (finding,) = found(write(tmp_path / "t.h5", arrays, n_prompt=40), "softmax_saturation")
    assert (finding.severity, finding.tensor) == ("warning", names[0])
    assert "one key takes more than 99%" in finding.message


def test_quiet_at_the_right_scale(tmp_path):
    trace = write(tmp_path / "t.h5", attention(tokens=40, dim=64), n_prompt=40)
    assert not found(trace, "softmax_saturation")


def test_attention_sinks_are_healthy(tmp_path):
    """Most heads rest on the first token; one in ten rows attends elsewhere."""
    probs = np.zeros((4, 40, 40), np.float32)
    probs[:, :, 0] = 1
    probs[:, ::5] = np.tril(np.ones((40, 40), np.float32))[::5] / np.arange(1, 41)[::5, None]
    trace = write(tmp_path / "t.h5", {"probs": probs}, n_prompt=40)
    assert not found(trace, "softmax_saturation")


def test_all_rows_on_one_other_key(tmp_path):
    probs = np.zeros((4, 40, 40), np.float32)
    probs[:, :, 0] = 1
    probs[:2, 10:, 0], probs[:2, 10:, 5] = 0, 1
    (finding,) = found(write(tmp_path / "t.h5", {"probs": probs}, n_prompt=40), "softmax_saturation")
    assert finding.evidence["details"][0]["elsewhere"] > 0.25


def test_too_few_rows(tmp_path):
    trace = write(tmp_path / "t.h5", attention(tokens=8, scale=60.0), n_prompt=8)
    assert "too few rows" in skipped(trace, "softmax_saturation")
