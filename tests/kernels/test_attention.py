"""Attention against loops over heads, queries and keys in plain Python numbers."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensortrace.kernels import attention

ALL = frozenset(attention.EXTRAS)
TOLERANCE = {np.float32: 3e-6, np.float64: 1e-13}


def one_row(scores: list[float], tile: int) -> tuple[list[float], list[float], list[float]]:
    """probs, and the running maximum and sum after each tile of keys."""
    tops, sums = [], []
    for end in range(tile, len(scores) + tile, tile):
        seen = [s for s in scores[:end] if s > -math.inf]
        tops.append(max(seen, default=-math.inf))
        sums.append(math.fsum(math.exp(s - tops[-1]) for s in seen))
    probs = [math.exp(s - tops[-1]) / sums[-1] if s > -math.inf else 0.0 for s in scores]
    return probs, tops, sums


def by_hand(q, k, v, *, scale, causal, window, softcap, tile) -> dict[str, np.ndarray]:
    """The definition, one query of one head at a time, in float64."""
    tokens, heads, dim = q.shape
    keys, kv_heads, _ = k.shape
    shapes = attention.shape(q.shape, k.shape, tile=tile)
    made = {name: np.zeros(shape) for name, shape in shapes.items()}
    for head in range(heads):
        shared = head * kv_heads // heads
        for query in range(tokens):
            position = keys - tokens + query
            scores = []
            for key in range(keys):
                score = scale * math.fsum(
                    float(q[query, head, i]) * float(k[key, shared, i]) for i in range(dim)
                )
                if softcap is not None:
                    score = softcap * math.tanh(score / softcap)
                hidden = (causal and key > position) or (window is not None and key <= position - window)
                scores.append(-math.inf if hidden else score)
            probs, tops, sums = one_row(scores, tile)
            made["scores"][head, query], made["probs"][head, query] = scores, probs
            made["m_tiles"][:, head, query], made["l_tiles"][:, head, query] = tops, sums
            made["m"][head, query], made["l"][head, query] = tops[-1], sums[-1]
            for i in range(dim):
                made["out"][query, head, i] = math.fsum(
                    p * float(v[j, shared, i]) for j, p in enumerate(probs)
                )
    return made


def draw(seed: int, *shape: int, dtype: type = np.float64) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


problems = st.fixed_dictionaries(
    {
        "tokens": st.integers(1, 7),
        "before": st.integers(0, 6),
        "kv_heads": st.integers(1, 3),
        "group": st.integers(1, 3),
        "dim": st.integers(1, 9),
        "dtype": st.sampled_from([np.float32, np.float64]),
        "seed": st.integers(0, 9),
    }
)
options = st.fixed_dictionaries(
    {
        "scale": st.floats(0.01, 4),
        "causal": st.booleans(),
        "window": st.none() | st.integers(1, 8),
        "softcap": st.none() | st.floats(0.5, 50),
        "tile": st.integers(1, 16),
    }
)


def operands(problem: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    tokens, dim, dtype = problem["tokens"], problem["dim"], problem["dtype"]
    keys, kv_heads = tokens + problem["before"], problem["kv_heads"]
    return (
        draw(problem["seed"], tokens, kv_heads * problem["group"], dim, dtype=dtype),
        draw(problem["seed"] + 10, keys, kv_heads, dim, dtype=dtype),
        draw(problem["seed"] + 20, keys, kv_heads, dim, dtype=dtype),
    )


@settings(max_examples=150, deadline=None)
@given(problems, options, st.sampled_from(["online", "two-pass"]))
def test_every_result_is_the_definition(problem: dict, option: dict, softmax: str) -> None:
    q, k, v = operands(problem)
    found = attention.cpu(q, k, v, softmax=softmax, want=ALL, **option)
    expected = by_hand(q, k, v, **option)
    assert set(found) == set(expected)
    tolerance = TOLERANCE[problem["dtype"]] * max(1, option["scale"]) * 10
    for name, array in found.items():
        assert array.dtype == problem["dtype"], name
        np.testing.assert_allclose(array, expected[name], rtol=tolerance, atol=tolerance, err_msg=name)


@settings(max_examples=60, deadline=None)
@given(problems, options, st.sampled_from(["online", "two-pass"]), st.sets(st.sampled_from(sorted(ALL))))
def test_what_is_wanted_changes_no_number(problem: dict, option: dict, softmax: str, want: set) -> None:
    q, k, v = operands(problem)
    every = attention.cpu(q, k, v, softmax=softmax, want=ALL, **option)
    some = attention.cpu(q, k, v, softmax=softmax, want=want, **option)
    assert set(some) == {"out", *want}
    for name, array in some.items():
        np.testing.assert_array_equal(array, every[name], err_msg=name)


@settings(max_examples=40, deadline=None)
@given(problems, options)
def test_rows_of_probs_sum_to_one(problem: dict, option: dict) -> None:
    q, k, v = operands(problem)
    probs = attention.cpu(q, k, v, want={"probs"}, **option)["probs"]
    assert np.abs(probs.sum(-1) - 1).max() < 1e-5
    assert (probs >= 0).all()


@pytest.mark.parametrize("softmax", ["online", "two-pass"])
@pytest.mark.parametrize("block", [1, 5, 128])
def test_blocks_of_queries_change_nothing(monkeypatch: pytest.MonkeyPatch, softmax: str, block: int) -> None:
    q, k, v = draw(0, 40, 6, 8), draw(1, 50, 2, 8), draw(2, 50, 2, 8)
    option = {"scale": 0.3, "softmax": softmax, "tile": 7, "window": 11, "want": ALL}
    whole = attention.cpu(q, k, v, **option)
    monkeypatch.setattr(attention, "QUERY_BLOCK", block)
    for name, array in attention.cpu(q, k, v, **option).items():
        np.testing.assert_allclose(array, whole[name], rtol=1e-12, atol=1e-14, err_msg=name)


@pytest.mark.parametrize("softmax", ["online", "two-pass"])
def test_the_last_queries_are_those_of_the_whole(softmax: str) -> None:
    """Decoding a token gives the row that a prefill of all tokens has."""
    q, k, v = draw(0, 20, 4, 8), draw(1, 20, 2, 8), draw(2, 20, 2, 8)
    option = {"scale": 0.3, "softmax": softmax, "tile": 6, "want": ALL}
    whole = attention.cpu(q, k, v, **option)
    for rows in (1, 3):
        last = attention.cpu(q[-rows:], k, v, **option)
        np.testing.assert_allclose(last["out"], whole["out"][-rows:], rtol=1e-12)
        np.testing.assert_allclose(last["scores"], whole["scores"][:, -rows:], rtol=1e-12)
        np.testing.assert_allclose(last["l_tiles"], whole["l_tiles"][..., -rows:], rtol=1e-12)


@pytest.mark.parametrize("softmax", ["online", "two-pass"])
def test_large_scores_do_not_overflow(softmax: str) -> None:
    """Subtracting the maximum first is what keeps exp in range."""
    q, k, v = (
        array.astype(np.float32)
        for array in (draw(0, 9, 2, 4) * 300, draw(1, 9, 1, 4) * 300, draw(2, 9, 1, 4))
    )
    with np.errstate(over="raise", invalid="raise"):
        found = attention.cpu(q, k, v, scale=1.0, softmax=softmax, tile=2, want=ALL)
    assert np.isfinite(found["out"]).all()
    assert np.abs(found["scores"][np.isfinite(found["scores"])]).max() > 1e4


@pytest.mark.parametrize("softmax", ["online", "two-pass"])
def test_nan_stays_where_it_is(softmax: str) -> None:
    q, k, v = draw(0, 6, 2, 4), draw(1, 6, 1, 4), draw(2, 6, 1, 4)
    q[3, 1] = np.nan
    found = attention.cpu(q, k, v, scale=1.0, softmax=softmax, tile=2, want=ALL)
    broken = np.isnan(found["out"]).any(-1)
    assert np.argwhere(broken).tolist() == [[3, 1]]


def test_inputs_are_left_alone() -> None:
    arrays = draw(0, 6, 2, 4), draw(1, 6, 1, 4), draw(2, 6, 1, 4)
    for array in arrays:
        array.flags.writeable = False
    for softmax in ("online", "two-pass"):
        attention.cpu(*arrays, scale=0.5, softcap=3.0, softmax=softmax, want=ALL)
