import numpy as np
import pytest
from rule_traces import TILE, attention, found, write


def test_a_maximum_that_falls(tmp_path):
    arrays = attention()
    arrays["m_tiles"] = arrays["m_tiles"].copy()
    arrays["m_tiles"][2, 1, 11] -= 5
    findings = found(write(tmp_path / "t.h5", arrays), "tiles")
    assert findings[0].tensor == "m_tiles"
    assert findings[0].evidence["details"][0]["token"] == 11


def test_a_merge_that_does_not_rescale(tmp_path):
    """l is summed up without exp(m_old - m): the tiles add more than their keys can give."""
    arrays = attention(scale=3.0)
    m, tiles = arrays["m_tiles"], arrays["l_tiles"].astype(np.float64)
    before = np.concatenate([np.full_like(m[:1], -np.inf), m[:-1]])
    shrink = np.where(np.isneginf(before), 0, np.exp(before - m))
    added = tiles - np.concatenate([np.zeros_like(tiles[:1]), tiles[:-1]]) * shrink
    arrays["l_tiles"] = added.cumsum(0).astype(np.float32)
    (finding,) = found(write(tmp_path / "t.h5", arrays), "tiles")
    assert (finding.tensor, finding.severity) == ("l_tiles", "error")


def test_a_sum_that_restarts_with_each_tile(tmp_path):
    arrays = attention()
    arrays["l_tiles"] = arrays["l_tiles"] * 0.1
    without_scores = {name: arrays[name] for name in ("m_tiles", "l_tiles")}
    (finding,) = found(write(tmp_path / "t.h5", without_scores), "tiles")
    assert "lacks" in finding.message
    assert "off its scores" in found(write(tmp_path / "u.h5", arrays), "tiles")[0].message


def test_masked_keys_in_the_sum(tmp_path):
    arrays = attention()
    arrays["l_tiles"] = arrays["l_tiles"] + np.arange(1, 4, dtype=np.float32)[:, None, None] * (TILE + 1)
    del arrays["scores"]
    (finding,) = found(write(tmp_path / "t.h5", arrays), "tiles")
    assert "more than its keys" in finding.message


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("softmax", ["online", "two-pass"])
def test_quiet_in_every_precision(tmp_path, dtype, softmax):
    assert not found(write(tmp_path / "t.h5", attention(scale=2.0, softmax=softmax), dtype=dtype), "tiles")


def test_quiet_with_a_window_and_in_decode(tmp_path, record_tiny):
    assert not found(write(tmp_path / "t.h5", attention(window=3)), "tiles")
    assert not found(record_tiny(n_new=9, tile=4), "tiles")
