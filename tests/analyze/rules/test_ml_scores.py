import numpy as np
import pytest
from rule_traces import attention, found, write
from tensortrace.analyze.cause import Injection


def test_a_sum_that_lost_keys(tmp_path):
    arrays = attention()
    arrays["l"] = arrays["l"] * np.float32(0.8)
    (finding,) = found(write(tmp_path / "t.h5", arrays), "ml_scores")
    assert (finding.severity, finding.tensor) == ("error", "l")
    assert finding.value == pytest.approx(np.log(0.8), abs=1e-5)


def test_another_reference_point_is_a_warning(record_tiny):
    fault = Injection.parse("softmax_no_max@1").apply
    (finding,) = found(record_tiny(n_new=3, change=fault), "ml_scores")
    assert (finding.severity, finding.layer, finding.tensor) == ("warning", 1, "m")


def test_of_statistics_the_maximum_alone(record_tiny):
    assert not found(record_tiny(n_new=3, stats_only=True), "ml_scores")
    fault = Injection.parse("softmax_no_max").apply
    (finding,) = found(record_tiny(n_new=3, stats_only=True, change=fault), "ml_scores")
    assert finding.tensor == "m"


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_quiet_in_every_precision(tmp_path, dtype):
    assert not found(write(tmp_path / "t.h5", attention(scale=2.0), dtype=dtype), "ml_scores")


def test_a_sink_adds_to_the_sum(tmp_path):
    arrays = attention()
    arrays["l"] = arrays["l"] + np.float32(0.5)
    declared = {"l": {"conventions": {"sinks": True}}}
    assert not found(write(tmp_path / "t.h5", arrays, declared=declared), "ml_scores")
    assert found(write(tmp_path / "u.h5", arrays), "ml_scores")
