import numpy as np
import pytest
from rule_traces import attention, found, write


def test_integers_read_as_floats(tmp_path):
    ids = np.arange(100, 100 + 96, dtype=np.int32).reshape(12, 8).view(np.float32)
    (finding,) = found(write(tmp_path / "t.h5", {"embd": ids}), "denormal")
    assert (finding.severity, finding.tensor, finding.value) == ("warning", "embd", 1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_probabilities_are_denormal_by_nature(tmp_path, dtype):
    tiny = np.full((4, 12, 12), 1e-39, np.float32)
    assert not found(write(tmp_path / "t.h5", attention() | {"probs": tiny}, dtype=dtype), "denormal")


def test_small_numbers_in_float16_are_usual_until_most_are(tmp_path):
    values = np.random.default_rng(0).normal(size=(12, 64)).astype(np.float32) * 1e-3
    assert not found(write(tmp_path / "t.h5", {"attn_out": values}, dtype="float16"), "denormal")
    (finding,) = found(write(tmp_path / "u.h5", {"attn_out": values * 1e-2}, dtype="float16"), "denormal")
    assert finding.value > 0.5
