from dataclasses import replace

import numpy as np
import pytest
from rule_traces import HEADER, attention, found, skipped, write
from tensortrace.analyze.cause import Injection
from tensortrace.tracer.selection import Selection


@pytest.mark.parametrize(
    ("times", "severity"), [(4.0, "error"), (0.25, "error"), (1.5, "info"), (1.0, None), (-1.0, "error")]
)
def test_a_wrong_scale(tmp_path, times, severity):
    trace = write(tmp_path / "t.h5", attention(dim=16, scale=0.25 * times))
    findings = found(trace, "scores_qk")
    assert [f.severity for f in findings] == ([severity] if severity else [])
    if findings:
        assert findings[0].value == pytest.approx(0.25 * times, rel=1e-4)


def test_a_declared_scale_is_right_and_its_absence_wrong(tmp_path):
    header = replace(HEADER, architecture="granite", hyperparameters={"granite.attention.scale": 0.0156})
    assert not found(write(tmp_path / "a.h5", attention(scale=0.0156), header=header), "scores_qk")
    (finding,) = found(write(tmp_path / "b.h5", attention(), header=header), "scores_qk")
    assert finding.severity == "error"


@pytest.mark.parametrize("cause", ["gqa_map", "kv_slot"])
def test_products_of_other_keys(record_tiny, cause):
    fault = Injection.parse(f"{cause}@1").apply
    (finding,) = found(record_tiny(n_new=5, change=fault), "scores_qk")
    assert (finding.severity, finding.layer) == ("error", 1)
    assert "are not q·k" in finding.message


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_quiet_in_every_precision_and_phase(record_tiny, dtype):
    assert not found(record_tiny(n_new=6, chunk=3, storage=dtype), "scores_qk")


def test_a_softcap_is_undone(tmp_path):
    declared = {"scores": {"conventions": {"softcap": 2.0}}}
    arrays = attention(softcap=2.0)
    assert not found(write(tmp_path / "a.h5", arrays, declared=declared), "scores_qk")
    assert found(write(tmp_path / "b.h5", arrays), "scores_qk")


def test_alibi_is_left_alone(tmp_path):
    header = replace(HEADER, architecture="bloom", hyperparameters={"bloom.attention.max_alibi_bias": 8.0})
    arrays = attention()
    arrays["scores"] = arrays["scores"] + np.arange(12, dtype=np.float32)
    assert "ALiBi" in skipped(write(tmp_path / "t.h5", arrays, header=header), "scores_qk")
    assert found(write(tmp_path / "u.h5", arrays), "scores_qk")


def test_part_of_the_keys_is_not_enough(record_tiny):
    trace = record_tiny(n_new=3, selection=Selection(tokens="5-"))
    assert "not every key" in skipped(trace, "scores_qk")
