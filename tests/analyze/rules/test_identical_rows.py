import numpy as np
import pytest
from rule_traces import found, skipped, write

RNG = np.random.default_rng(0)


def rows(count, dim=16):
    return RNG.normal(size=(count, dim)).astype(np.float32)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_all_tokens_the_same(tmp_path, dtype):
    trace = write(tmp_path / "t.h5", {"resid_out": np.tile(rows(1), (12, 1))}, dtype=dtype)
    (finding,) = found(trace, "identical_rows")
    assert (finding.severity, finding.tensor, finding.value) == ("error", "resid_out", 11)


def test_a_stale_graph_in_decode(tmp_path):
    stale = rows(1)
    trace = write(tmp_path / "t.h5", {"resid_out": rows(12)}, [{"resid_out": stale}] * 4)
    (finding,) = found(trace, "identical_rows")
    assert "decode steps" in finding.message
    assert finding.step == 2  # the first that repeats an earlier one


def test_equal_tokens_may_give_equal_rows(tmp_path):
    arrays = {"embd": np.tile(rows(1), (12, 1))}
    assert "neighbouring tokens" in skipped(
        write(tmp_path / "t.h5", arrays, tokens=[5] * 12), "identical_rows"
    )


def test_a_pair_of_unused_tokens_is_no_fault(tmp_path):
    embd = rows(12)
    embd[4] = embd[3]
    assert not found(write(tmp_path / "t.h5", {"embd": embd}), "identical_rows")


def test_a_shared_sink_is_no_fault_unless_all_rows_share_it(tmp_path):
    out = rows(12)
    out[:8] = out[0]
    assert not found(write(tmp_path / "t.h5", {"attn_out": out}), "identical_rows")
    assert found(write(tmp_path / "u.h5", {"resid_mid": out}), "identical_rows")
    out[:] = out[0]
    assert found(write(tmp_path / "v.h5", {"attn_out": out}), "identical_rows")


def test_quiet_on_a_model_and_on_its_statistics(record_tiny):
    assert not found(record_tiny(n_new=9), "identical_rows")
    assert not found(record_tiny(n_new=9, stats_only=True), "identical_rows")
