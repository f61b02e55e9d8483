"""Statistics in place of tensors: each against a plain loop."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tensortrace.tracer.format import TensorSpec
from tensortrace.tracer.names import Key
from tensortrace.tracer.stats import BINS, LOWEST, STATS, specs, summarize

Q = TensorSpec(Key(2, "q"), ("token", "head", "dim"), {"head": 2, "dim": 5})
SCORES = TensorSpec(Key(2, "scores"), ("head", "query", "key"), {"head": 2})
floats = st.floats(width=32)


def row_statistics(row: list[float]) -> list[float]:
    finite = [x for x in row if math.isfinite(x)]
    mean = math.fsum(finite) / max(len(finite), 1)
    square = math.fsum(x * x for x in finite) / max(len(finite), 1)
    low, high = min(finite, default=math.inf), max(finite, default=-math.inf)
    return [low, high, mean, math.sqrt(square), sum(map(math.isnan, row)), sum(map(math.isinf, row))]


def row_histogram(row: list[float]) -> list[int]:
    counts = [0] * BINS
    for x in filter(math.isfinite, row):
        place = 0 if x == 0 else math.floor(math.log2(abs(x))) - LOWEST
        counts[min(max(place, 0), BINS - 1)] += 1
    return counts


@settings(deadline=None)
@given(hnp.arrays(np.float32, (3, 2, 5), elements=floats))
def test_rows_of_tokens(array: np.ndarray) -> None:
    made = summarize(Q, array)
    for token, row in enumerate(array.reshape(3, -1).astype(float).tolist()):
        expected = np.array(row_statistics(row))
        tolerance = 1e-6 * max((abs(x) for x in row if math.isfinite(x)), default=0) + 1e-44  # denormals
        assert np.allclose(made[Key(2, "q.stats")][token], expected, rtol=1e-5, atol=tolerance)
        assert made[Key(2, "q.hist")][token].tolist() == row_histogram(row)


@given(hnp.arrays(np.float32, (2, 3, 4), elements=floats))
def test_rows_of_queries(array: np.ndarray) -> None:
    made = summarize(SCORES, array)
    assert set(made) == {Key(2, "scores.stats"), Key(2, "scores.hist")}
    for head in range(2):
        for query in range(3):
            row = array[head, query].astype(float).tolist()
            assert made[Key(2, "scores.hist")][head, query].tolist() == row_histogram(row)
            assert made[Key(2, "scores.stats")][head, query, 4:].tolist() == row_statistics(row)[4:]


def test_norms_of_head_vectors() -> None:
    array = np.random.default_rng(0).normal(size=(3, 2, 5)).astype(np.float32)
    assert np.allclose(summarize(Q, array)[Key(2, "q.l2")], np.linalg.norm(array, axis=-1), rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_squares_do_not_overflow(dtype: type) -> None:
    top = float(np.finfo(dtype).max) / 4
    made = summarize(Q, np.full((1, 2, 5), top, dtype))
    assert np.allclose(made[Key(2, "q.stats")][0, :4], top, rtol=1e-3)
    assert np.allclose(made[Key(2, "q.l2")], top * math.sqrt(5), rtol=1e-3)


def test_softmax_state_is_kept_as_it_is() -> None:
    spec = TensorSpec(Key(0, "m"), ("head", "query"), {"head": 2})
    array = np.zeros((2, 3), np.float32)
    assert specs(spec) == [spec]
    assert summarize(spec, array) == {spec.key: array}


@pytest.mark.parametrize("spec", [Q, SCORES], ids=["q", "scores"])
def test_what_is_announced_is_what_is_made(spec: TensorSpec) -> None:
    made = summarize(spec, np.ones(spec.shape(3, 7), np.float32))
    assert {s.key: s.shape(3, 7) for s in specs(spec)} == {key: array.shape for key, array in made.items()}
    assert {s.key: np.dtype(s.dtype) for s in specs(spec)} == {
        key: array.dtype for key, array in made.items()
    }
    assert made[Key(2, f"{spec.key.name}.stats")].shape[-1] == len(STATS)
