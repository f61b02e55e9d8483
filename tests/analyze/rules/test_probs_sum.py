from dataclasses import replace

import pytest
from rule_traces import HEADER, attention, found, write


def test_rows_that_do_not_sum_to_one(tmp_path):
    arrays = attention()
    arrays["probs"] = arrays["probs"].copy()
    arrays["probs"][2, 7] *= 1.5
    (finding,) = found(write(tmp_path / "t.h5", arrays), "probs_sum")
    assert finding.severity == "error"
    assert finding.value == pytest.approx(1.5, abs=1e-5)
    assert finding.evidence["details"][0] | {"value": 0} == {
        "step": 0,
        "layer": 0,
        "value": 0,
        "head": 2,
        "token": 7,
    }


def test_negative_probabilities(tmp_path):
    arrays = attention()
    arrays["probs"] = arrays["probs"].copy()
    arrays["probs"][0, 9, :2] += [-0.5, 0.5]
    (finding,) = found(write(tmp_path / "t.h5", arrays), "probs_sum")
    assert "negative" in finding.message


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_rounding_by_the_storage_is_no_fault(tmp_path, dtype):
    assert not found(write(tmp_path / "t.h5", attention(), dtype=dtype), "probs_sum")


def test_an_attention_sink_takes_its_share(tmp_path):
    arrays = attention()
    arrays["probs"] = arrays["probs"] * 0.7
    declared = {"probs": {"conventions": {"sinks": True}}}
    assert not found(write(tmp_path / "a.h5", arrays, declared=declared), "probs_sum")
    header = replace(HEADER, architecture="gpt-oss")
    assert not found(write(tmp_path / "b.h5", arrays, header=header), "probs_sum")
    assert found(write(tmp_path / "c.h5", arrays), "probs_sum")


def test_of_statistics(record_tiny):
    def scaled(graph):
        def wrap(f):
            def attend(*a, **k):
                result = f(*a, **k)
                return result | {"probs": result["probs"] * 1.01}

            return attend

        return graph.replace(lambda op: op.wrapped(wrap) if op.kind == "attention" else op)

    assert not found(record_tiny(n_new=3, stats_only=True), "probs_sum")
    (finding,) = found(record_tiny(n_new=3, stats_only=True, change=scaled), "probs_sum")
    assert finding.value == pytest.approx(1.01, abs=1e-5)
