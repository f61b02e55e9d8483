import numpy as np
import pytest
from rule_traces import attention, found, skipped, write


def test_a_rotation_that_stretches(tmp_path):
    arrays = attention()
    arrays["q_rope"] = arrays["q"].copy()
    arrays["q_rope"][6:, 1, :8] *= 1.5
    (finding,) = found(write(tmp_path / "t.h5", arrays), "rope_length")
    assert (finding.severity, finding.tensor) == ("error", "q_rope")


@pytest.mark.parametrize(("factor", "severity"), [(1.2, "info"), (3.0, "error"), (0.8, "error"), (1.0, None)])
def test_a_constant_factor(tmp_path, factor, severity):
    arrays = attention()
    arrays["k_rope"] = arrays["k"] * np.float32(factor)
    findings = found(write(tmp_path / "t.h5", arrays), "rope_length")
    assert [f.severity for f in findings] == ([severity] if severity else [])


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_quiet_on_a_model(record_tiny, dtype):
    assert not found(record_tiny(n_new=3, storage=dtype), "rope_length")


def test_quiet_on_lengths(record_tiny):
    assert not found(record_tiny(n_new=3, stats_only=True), "rope_length")


def test_needs_both_sides(tmp_path):
    trace = write(tmp_path / "t.h5", {"q_rope": attention()["q"]})
    assert "before the rotation" in skipped(trace, "rope_length")
