"""The compiled kernels against the NumPy code that defines them, computed in float64.

That code is held against plain Python numbers in test_attention, test_rope and test_small_ops.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensortrace.kernels import attention, glu, native, rms_norm, rope

pytestmark = pytest.mark.cxx
ALL = frozenset(attention.EXTRAS)


def draw(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def units(found: np.ndarray, exact: np.ndarray) -> float:
    """The largest error in units of float32's last place."""
    room = np.maximum(np.spacing(np.abs(exact).astype(np.float32)), np.finfo(np.float32).tiny)
    return float((np.abs(found - exact) / room).max())


def softmax(scores: np.ndarray, tile: int) -> dict[str, np.ndarray]:
    """One query with just these scores: its head has one number, which is 1."""
    k = scores.astype(np.float32).reshape(-1, 1, 1)
    return attention.cpu(np.ones((1, 1, 1), np.float32), k, np.ones_like(k), scale=1.0, tile=tile, want=ALL)


@pytest.mark.parametrize("tile", [997, 2_000_000])
def test_exp_of_every_size(tile: int) -> None:
    x = np.concatenate([[0], np.linspace(-86.6, 0, 1_000_003), -np.geomspace(1e-30, 1, 1000)])
    found = softmax(x, tile)
    exact = np.exp(x.astype(np.float32).astype(np.float64))
    assert found["m"].item() == 0
    assert found["l"].item() == pytest.approx(exact.sum(), rel=1e-5)
    # exp, and by one rounding each the quotient 1 / l and the product with it
    assert units(found["probs"].ravel(), exact / found["l"].item()) <= 3


@pytest.mark.parametrize("score", [-87, -104, -1e30, -np.inf])
def test_exp_far_below_zero_is_nothing(score: float) -> None:
    found = softmax(np.array([0, *9 * [score]]), 4)
    assert (found["probs"].ravel()[1:] < 1e-37).all()
    assert found["l"] == 1


def test_a_row_that_has_seen_nothing() -> None:
    found = softmax(np.array([*5 * [-np.inf], 2, -np.inf]), 3)
    np.testing.assert_array_equal(found["m_tiles"].ravel(), [-np.inf, 2, 2])
    np.testing.assert_array_equal(found["l_tiles"].ravel(), [0, 1, 1])
    np.testing.assert_array_equal(found["probs"].ravel(), [0, 0, 0, 0, 0, 1, 0])


@pytest.mark.parametrize("place", [0, 7, 16])
def test_nan_is_not_lost_in_the_maximum(place: int) -> None:
    scores = draw(0, 17)
    scores[place] = np.nan
    found = softmax(scores, 17)
    assert np.isnan(found["probs"]).all()
    assert np.isnan([found["m"], found["l"]]).all()


def test_silu_of_every_size() -> None:
    x = np.concatenate([np.linspace(-86, 88.7, 100_003), [0, -0.0, 200, -200]]).astype(np.float32)
    found = glu.cpu(x, np.ones_like(x))
    wide = x.astype(np.float64)
    assert units(found, wide / (1 + np.exp(-wide))) <= 3
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(
            glu.cpu(*2 * [np.array([np.nan, np.inf], np.float32)]), [np.nan, np.inf]
        )


problems = st.fixed_dictionaries(
    {
        "tokens": st.sampled_from([1, 2, 33, 140]),
        "before": st.sampled_from([0, 1, 30, 300]),
        "kv_heads": st.integers(1, 3),
        "group": st.integers(1, 3),
        "dim": st.sampled_from([1, 7, 64, 80]),
    }
)
options = st.fixed_dictionaries(
    {
        "causal": st.booleans(),
        "window": st.none() | st.sampled_from([1, 9, 130]),
        "softcap": st.none() | st.just(5.0),
        "tile": st.sampled_from([1, 16, 128]),
    }
)


@given(problems, options, st.booleans())
def test_attention(problem: dict, option: dict, with_sinks: bool) -> None:
    tokens, kv_heads, dim = problem["tokens"], problem["kv_heads"], problem["dim"]
    keys, heads = tokens + problem["before"], kv_heads * problem["group"]
    q, k, v = draw(0, tokens, heads, dim), draw(1, keys, kv_heads, dim), draw(2, keys, kv_heads, dim)
    sinks = draw(3, heads) if with_sinks else None
    operands = (q, k, v, sinks)
    assert native.takes(*operands)
    wide = [None if array is None else array.astype(np.float64) for array in operands]
    found = attention.cpu(*operands, scale=0.2, want=ALL, **option)
    exact = attention.cpu(*wide, scale=0.2, want=ALL, **option)
    for name, array in found.items():
        assert array.dtype == np.float32
        np.testing.assert_allclose(array, exact[name], rtol=3e-5, atol=3e-6, err_msg=name)


@pytest.mark.parametrize("tokens", [1, 3])
def test_attention_over_many_keys(tokens: int) -> None:
    """Heads are shared out to threads; each gives what it gives alone."""
    q, k, v = draw(0, tokens, 6, 64), draw(1, 5000, 2, 64), draw(2, 5000, 2, 64)
    found = attention.cpu(q, k, v, scale=0.125, want=ALL)
    exact = attention.cpu(*(a.astype(np.float64) for a in (q, k, v)), scale=0.125, want=ALL)
    for name, array in found.items():
        np.testing.assert_allclose(array, exact[name], rtol=1e-4, atol=1e-6, err_msg=name)
    again = attention.cpu(q, k, v, scale=0.125, want=ALL)
    assert all(np.array_equal(again[name], array) for name, array in found.items())


@pytest.mark.parametrize("tokens", [1, 9])
def test_a_tile_far_larger_than_the_keys_takes_no_memory(tokens: int) -> None:
    q, k, v = draw(0, tokens, 4, 16), draw(1, 9, 2, 16), draw(2, 9, 2, 16)
    whole = attention.cpu(q, k, v, scale=0.3, tile=9, want=ALL)
    for name, array in attention.cpu(q, k, v, scale=0.3, tile=1 << 60, want=ALL).items():
        np.testing.assert_array_equal(array, whole[name], err_msg=name)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("tokens", [1, 4])
def test_far_negative_scores_behind_a_window(
    monkeypatch: pytest.MonkeyPatch, tokens: int, compiled: bool
) -> None:
    """A tile that the query does not see has no maximum: 0 in its place would make its factor infinite."""
    if not compiled:
        monkeypatch.setattr(native, "LIBRARY", None)
    q, k, v = np.full((tokens, 1, 4), 10, np.float32), np.full((20, 1, 4), -10, np.float32), draw(2, 20, 1, 4)
    with np.errstate(over="raise", invalid="raise"):
        found = attention.cpu(q, k, v, scale=1.0, window=3, tile=4, want=ALL)
    assert found["m"].max() == -400
    np.testing.assert_allclose(found["probs"].sum(-1), 1, rtol=1e-6)
    assert np.isfinite(found["out"]).all()


@pytest.mark.parametrize("tokens", [1, 5])
def test_arrays_that_are_not_contiguous_give_the_same(tokens: int) -> None:
    q, k, v = draw(0, tokens, 4, 16), draw(1, 9, 2, 16), draw(2, 9, 2, 16)
    whole = attention.cpu(q, k, v, scale=0.3, want=ALL)
    strided = attention.cpu(*(np.repeat(a, 2, -1)[..., ::2] for a in (q, k, v)), scale=0.3, want=ALL)
    for name, array in strided.items():
        np.testing.assert_allclose(array, whole[name], rtol=1e-5, atol=1e-6, err_msg=name)
    gate, up = draw(3, 5, 8), draw(4, 5, 8)
    np.testing.assert_allclose(glu.cpu(gate.T, up.T), glu.cpu(gate, up).T, rtol=1e-6)


@given(st.integers(1, 40), st.integers(1, 100), st.sampled_from([0.0, 1e-5, 1.0]))
def test_rms_norm(rows: int, dim: int, eps: float) -> None:
    x, gain = draw(0, rows, dim), draw(1, dim)
    exact = rms_norm.cpu(x.astype(np.float64), gain.astype(np.float64), eps=eps)
    np.testing.assert_allclose(rms_norm.cpu(x, gain, eps=eps), exact, rtol=2e-6)


@given(
    st.integers(1, 40),
    st.integers(1, 5),
    st.integers(1, 20),
    st.integers(0, 9),
    st.sampled_from(["interleaved", "half-split"]),
)
def test_rope(tokens: int, heads: int, half: int, rest: int, pairing: str) -> None:
    x, places = draw(0, tokens, heads, 2 * half + rest), np.arange(7, 7 + tokens)
    rotation = {"base": 1e4, "dims": 2 * half, "pairing": pairing}
    exact = rope.cpu(x.astype(np.float64), places, **rotation)
    np.testing.assert_allclose(rope.cpu(x, places, **rotation), exact, rtol=1e-6, atol=1e-6)


F = np.float32
ROW = np.zeros(4, F)
MISFITS = {
    "a key that is not there": lambda c: c.attend(*attended(last=3)),
    "ends before it begins": lambda c: c.attend(*attended(first=2, last=1)),
    "probs without their maxima": lambda c: c.attend(*attended(m_tiles=0)),
    "no room for the scores": lambda c: c.attend(*attended(scores=1)),
    "a missing value": lambda c: c.attend(*attended(v=7)),
    "no tile": lambda c: c.attend(*attended(tile=0)),
    "a head on two": lambda c: c.attend(*attended(heads=1, kv_heads=2)),
    "sinks of other heads": lambda c: c.attend(*attended(sinks=2)),
    "a short gate": lambda c: c.silu_glu(np.zeros(3, F), ROW, ROW),
    "a long gain": lambda c: c.rms_norm(ROW, np.zeros(3, F), 0.0, ROW),
    "no gain": lambda c: c.rms_norm(ROW, np.zeros(0, F), 0.0, ROW),
    "more pairs than numbers": lambda c: c.rotate(
        ROW, np.zeros(3, F), np.zeros(3, F), (1, 1, 4, 3), True, ROW
    ),
    "a sine is missing": lambda c: c.rotate(ROW, np.zeros(2, F), np.zeros(1, F), (1, 1, 4, 2), True, ROW),
}


def attended(
    *, heads: int = 1, kv_heads: int = 1, tile: int = 2, first: int = 0, last: int = 2, **sizes: int
) -> list[object]:
    """What `attend` takes for one head of 4 numbers and two keys; `sizes` of arrays that are to be wrong."""
    fitting = {"q": 4, "k": 8, "v": 8, "sinks": 1}
    results = {"out": 4, "scores": 2, "probs": 2, "m": 1, "l": 1, "m_tiles": 1, "l_tiles": 1}
    given, made = ([np.zeros(sizes.get(n, size), F) for n, size in d.items()] for d in (fitting, results))
    edges = [np.full(1, edge, np.intc) for edge in (first, last)]
    return [*given, *edges, (heads, kv_heads, tile, 1.0, 0.0), *made]


@pytest.mark.parametrize("why", MISFITS)
def test_arrays_that_do_not_fit_are_refused(why: str) -> None:
    native.LIBRARY.attend(*attended())
    with pytest.raises(ValueError, match="do not fit together"):
        MISFITS[why](native.LIBRARY)
