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


def fold(scores: np.ndarray, m: float, l: float) -> tuple[float, float, float]:  # noqa: E741
    """Take one row of scores in; gives m, l and the factor, and changes `scores`."""
    state = [np.full(1, number, np.float32) for number in (m, l, 0)]
    edges = np.zeros(1, np.intc), np.full(1, scores.size, np.intc)
    native.LIBRARY.fold(scores, *state, *edges, None)
    return tuple(float(number[0]) for number in state)


def test_exp_of_every_size() -> None:
    x = np.concatenate([np.linspace(-86.6, 0, 1_000_003), -np.geomspace(1e-30, 1, 1000), [0]]).astype(
        np.float32
    )
    found = x.copy()
    m, l, _ = fold(found, 0, 0)  # noqa: E741
    exact = np.exp(x.astype(np.float64))
    assert units(found, exact) <= 1.5
    assert m == 0
    assert l == pytest.approx(exact.sum(), rel=1e-5)


@pytest.mark.parametrize("score", [-87, -104, -1e30, -np.inf])
def test_exp_far_below_zero_is_nothing(score: float) -> None:
    found = np.full(9, score, np.float32)
    fold(found, 0, 0)
    assert (np.abs(found) < 1e-37).all()


def test_a_row_that_has_seen_nothing() -> None:
    scores = np.full(5, -np.inf, np.float32)
    assert fold(scores, -np.inf, 0) == (-np.inf, 0, 0)
    assert not scores.any()


@pytest.mark.parametrize("place", [0, 7, 16])
def test_nan_is_not_lost_in_the_maximum(place: int) -> None:
    scores = draw(0, 17)
    scores[place] = np.nan
    state = fold(scores, 1, 1)
    assert np.isnan(state).all()
    assert np.isnan(scores).all()


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
ROW, EDGE = np.zeros(4, F), np.zeros(1, np.intc)
MISFITS = {
    "a row is missing": lambda c: c.fold(
        np.zeros(7, F), *3 * [np.zeros(2, F)], *2 * [np.zeros(2, np.intc)], None
    ),
    "more keys than scores": lambda c: c.fold(ROW, *3 * [np.zeros(1, F)], EDGE, EDGE + 5, None),
    "ends before it begins": lambda c: c.fold(ROW, *3 * [np.zeros(1, F)], EDGE + 3, EDGE + 2, None),
    "no room for the scores": lambda c: c.fold(
        ROW, *3 * [np.zeros(1, F)], EDGE, EDGE + 4, np.zeros((1, 1, 1, 3), F)
    ),
    "a place of two axes": lambda c: c.fold(ROW, *3 * [np.zeros(1, F)], EDGE, EDGE + 4, np.zeros((1, 4), F)),
    "columns far apart": lambda c: c.fold(
        ROW, *3 * [np.zeros(1, F)], EDGE, EDGE + 4, np.zeros((1, 1, 1, 8), F)[..., ::2]
    ),
    "a missing value": lambda c: c.attend(*token(v=np.zeros(7, F))),
    "no tile": lambda c: c.attend(*token(options=(1, 0, 0, 1.0, 0.0))),
    "begins after the end": lambda c: c.attend(*token(options=(1, 2, 3, 1.0, 0.0))),
    "three heads on two": lambda c: c.attend(*token(options=(2, 2, 0, 1.0, 0.0))),
    "sinks of other heads": lambda c: c.attend(*token(sinks=np.zeros(2, F))),
    "a short gate": lambda c: c.silu_glu(np.zeros(3, F), ROW, ROW),
    "a long gain": lambda c: c.rms_norm(ROW, np.zeros(3, F), 0.0, ROW),
    "no gain": lambda c: c.rms_norm(ROW, np.zeros(0, F), 0.0, ROW),
    "more pairs than numbers": lambda c: c.rotate(
        ROW, np.zeros(3, F), np.zeros(3, F), (1, 1, 4, 3), True, ROW
    ),
    "a sine is missing": lambda c: c.rotate(ROW, np.zeros(2, F), np.zeros(1, F), (1, 1, 4, 2), True, ROW),
}


def token(
    v: np.ndarray | None = None,
    sinks: np.ndarray | None = None,
    options: tuple[int, int, int, float, float] = (1, 2, 0, 1.0, 0.0),
) -> list[object]:
    """What `attend` takes for one head of 4 numbers and two keys."""
    keys = np.zeros(8, F)
    one = [np.zeros(size, F) for size in (4, 2, 2, 1, 1, 1, 1)]
    return [np.zeros(4, F), keys, keys if v is None else v, sinks, options, *one]


@pytest.mark.parametrize("why", MISFITS)
def test_arrays_that_do_not_fit_are_refused(why: str) -> None:
    native.LIBRARY.attend(*token())
    with pytest.raises(ValueError, match="do not fit together"):
        MISFITS[why](native.LIBRARY)
