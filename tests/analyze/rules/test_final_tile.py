import numpy as np
import pytest
from rule_traces import attention, found, write


@pytest.mark.parametrize("name", ["m", "l"])
def test_a_last_tile_that_was_lost(tmp_path, name):
    arrays = attention()
    arrays[name] = arrays[f"{name}_tiles"][-2]
    (finding,) = found(write(tmp_path / "t.h5", arrays), "final_tile")
    assert (finding.severity, finding.tensor) == ("error", name)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_quiet_in_every_precision(tmp_path, dtype):
    assert not found(write(tmp_path / "t.h5", attention(), dtype=dtype), "final_tile")


def test_quiet_in_decode_and_on_statistics(record_tiny):
    assert not found(record_tiny(n_new=6, tile=4), "final_tile")
    assert not found(record_tiny(n_new=6, tile=4, stats_only=True), "final_tile")


def test_nan_does_not_pass(tmp_path):
    arrays = attention()
    arrays["m"] = np.full_like(arrays["m"], np.nan)
    assert found(write(tmp_path / "t.h5", arrays), "final_tile")
