import numpy as np
import pytest
from rule_traces import attention, spec, write
from tensortrace.analyze.walk import Block, blocks, row_figures, usual
from tensortrace.tracer.format import TensorSpec
from tensortrace.tracer.names import Key
from tensortrace.tracer.selection import Selection
from tensortrace.tracer.stats import STATS, summarize
from tensortrace.tracer.trace import Trace


def places(trace: Trace) -> list[tuple]:
    return [(block.phase, block.steps[0].index, len(block.steps), block.layer) for block in blocks(trace)]


def test_execution_order_step_by_step(record_tiny):
    assert places(record_tiny(n_new=4, chunk=5)) == [
        *[("prefill", 0, 1, layer) for layer in (None, 0, 1, None)],
        *[("prefill", 1, 1, layer) for layer in (None, 0, 1, None)],
        *[("decode", 2, 3, layer) for layer in (None, 0, 1, None)],
    ]


def test_decode_steps_are_joined(record_tiny):
    trace = record_tiny(n_new=5, tile=4)
    block = next(b for b in blocks(trace) if b.phase == "decode" and b.layer == 1)
    assert (block.rows.tolist(), block.kv_len.tolist()) == ([10, 11, 12, 13], [11, 12, 13, 14])
    assert block.tensor("q").shape == (4, 4, 16)
    scores = block.tensor("scores")
    assert scores.shape == (4, 4, 14)  # head, step, key
    assert np.isneginf(scores[:, 0, 11:]).all()
    assert not block.tensor("probs")[:, 0, 11:].any()
    tiles = block.tensor("m_tiles")
    assert tiles.shape == (4, 4, 4)
    np.testing.assert_array_equal(tiles[3, :, 0], tiles[2, :, 0])  # a tile that did not exist yet
    for row, step in enumerate(block.steps):
        for name in ("scores", "probs"):
            recorded = trace.read(Key(1, name), step.index)
            np.testing.assert_array_equal(block.tensor(name)[:, row, : step.kv_len], recorded[:, 0])
    assert block.steps_of(np.array([0, 3])) == [1, 4]


def test_rows_that_were_not_recorded(record_tiny):
    trace = record_tiny(n_new=5, selection=Selection(tokens="3-5,12"))
    rows = [block.rows.tolist() for block in blocks(trace) if block.layer == 0]
    assert rows == [[3, 4, 5], [12]]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_figures_are_those_that_statistics_record(record_tiny, dtype):
    whole, figures = record_tiny(n_new=4), record_tiny(n_new=4, stats_only=True)
    narrow = record_tiny(n_new=4, storage=dtype)
    room = 0 if dtype == "float32" else 0.02
    for one, other, stored in zip(blocks(whole), blocks(figures), blocks(narrow), strict=True):
        for name in one.specs:
            if one.specs[name].joined or name in ("scores", "probs"):
                for figure in STATS:
                    got = one.summary(name, figure)
                    np.testing.assert_allclose(got, other.summary(name, figure), rtol=1e-4, atol=1e-6)
                    np.testing.assert_allclose(
                        stored.summary(name, figure), got, rtol=room, atol=room or 1e-6
                    )
        for name in filter(one.can_length, ("q", "k_rope", "attn")):
            np.testing.assert_allclose(one.lengths(name), other.lengths(name), rtol=1e-5)


@pytest.mark.parametrize("bad", [None, np.nan, np.inf, -np.inf])
def test_row_figures(bad):
    rows = np.random.default_rng(0).normal(size=(3, 40)).astype(np.float32)
    if bad is not None:
        rows[1, 5:7] = bad
    declared = TensorSpec(Key(0, "up"), ("token", "ffn"), {"ffn": 40})
    expected = summarize(declared, rows)[Key(0, "up.stats")]
    np.testing.assert_allclose(row_figures(rows), expected, rtol=1e-5)


def test_row_figures_of_nothing():
    assert row_figures(np.zeros((3, 0), np.float32)).shape == (3, 6)
    assert row_figures(np.full((1, 4), np.nan, np.float32))[0, :2].tolist() == [np.inf, -np.inf]


def test_axes_that_are_not_those_of_the_name(tmp_path):
    arrays = attention()
    declared = {"q": {"axes": ("dim", "query", "key")}}
    trace = write(tmp_path / "t.h5", {"q": np.zeros((4, 12, 12), np.float32)}, declared=declared)
    (block,) = blocks(trace)
    assert not block.has("q")
    assert block.by_row("q").shape == (12, 48)
    assert usual(spec("q", arrays["q"]))
    assert not usual(spec("q", arrays["q"], axes=("head", "token", "dim")))


def test_together(tmp_path):
    arrays = attention()
    arrays["l"] = arrays["l"][:3]
    (block,) = blocks(write(tmp_path / "t.h5", arrays))
    assert block.together("m", "scores")
    assert not block.together("m", "l")
    assert not block.together("m", "logits")
    assert isinstance(block, Block)
