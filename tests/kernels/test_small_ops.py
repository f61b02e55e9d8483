"""The ops that take one line of mathematics each, against that line in plain Python numbers."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tensortrace.kernels import add, embedding, glu, linear, rms_norm

DTYPES = st.sampled_from([np.float32, np.float64])
TOLERANCE = {np.float32: 1e-5, np.float64: 1e-12}


def arrays(*shape: int, dtype: type = np.float64, limit: float = 100):
    width = 32 if dtype == np.float32 else 64
    return hnp.arrays(dtype, shape, elements=st.floats(-limit, limit, width=width, allow_subnormal=False))


def draw(seed: int, *shape: int, dtype: type = np.float64) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


@settings(deadline=None)
@given(st.integers(1, 5), st.integers(1, 7), st.integers(1, 4), st.booleans(), DTYPES)
def test_linear(tokens: int, size: int, outputs: int, biased: bool, dtype: type) -> None:
    x, weight = draw(0, tokens, size, dtype=dtype), draw(1, outputs, size, dtype=dtype)
    bias = draw(2, outputs, dtype=dtype) if biased else None
    found = linear.cpu(x, weight, bias)
    assert found.dtype == dtype
    for token in range(tokens):
        for row in range(outputs):
            dot = math.fsum(float(x[token, i]) * float(weight[row, i]) for i in range(size))
            expected = dot + (float(bias[row]) if bias is not None else 0)
            assert found[token, row] == pytest.approx(expected, rel=TOLERANCE[dtype], abs=TOLERANCE[dtype])


def test_linear_views_heads_and_flattens_them() -> None:
    x, weight = draw(3, 5, 4, 3), draw(4, 6, 12)
    flat = linear.cpu(x.reshape(5, 12), weight)
    assert np.array_equal(linear.cpu(x, weight), flat)
    assert np.array_equal(linear.cpu(x, weight, heads=2), flat.reshape(5, 2, 3))
    assert linear.shape(x.shape, weight.shape) == (5, 6)
    assert linear.shape(x.shape, weight.shape, heads=2) == (5, 2, 3)


@settings(deadline=None)
@given(arrays(3, 4), arrays(4), st.sampled_from([0.0, 1e-6, 1e-5, 1.0]))
def test_rms_norm(x: np.ndarray, gain: np.ndarray, eps: float) -> None:
    x = x + (np.abs(x).max(-1, keepdims=True) < 1e-9)  # without eps there is no norm of nothing
    found = rms_norm.cpu(x, gain, eps=eps)
    for row, values in enumerate(x.tolist()):
        root = math.sqrt(math.fsum(value * value for value in values) / len(values) + eps)
        np.testing.assert_allclose(found[row], [v / root * g for v, g in zip(values, gain)], rtol=1e-12)


@settings(deadline=None)
@given(arrays(2, 6), st.floats(0.001, 1000))
def test_rms_norm_forgets_the_scale_and_gives_unit_rows(x: np.ndarray, factor: float) -> None:
    x = x + (np.abs(x).max(-1, keepdims=True) < 1)
    unit = rms_norm.cpu(x, np.ones(6), eps=0.0)
    np.testing.assert_allclose((unit * unit).mean(-1), 1, rtol=1e-12)
    np.testing.assert_allclose(rms_norm.cpu(x * factor, np.ones(6), eps=0.0), unit, rtol=1e-9)


def test_rms_norm_of_heads_and_of_zeros() -> None:
    x, gain = draw(5, 3, 2, 8, dtype=np.float32), draw(6, 8, dtype=np.float32)
    flat = rms_norm.cpu(x.reshape(6, 8), gain, eps=1e-5)
    assert np.array_equal(rms_norm.cpu(x, gain, eps=1e-5), flat.reshape(3, 2, 8))
    assert flat.dtype == np.float32
    assert np.array_equal(rms_norm.cpu(np.zeros((2, 8)), gain, eps=1e-5), np.zeros((2, 8)))


@settings(deadline=None)
@given(arrays(8, limit=1e4), arrays(8))
def test_gated_silu(gate: np.ndarray, up: np.ndarray) -> None:
    with np.errstate(all="raise", under="ignore"):
        found = glu.cpu(gate, up, activation="silu")
    for place, (g, u) in enumerate(zip(gate.tolist(), up.tolist())):
        sigmoid = 1 / (1 + math.exp(-g)) if g > -700 else math.exp(max(g, -745))
        assert found[place] == pytest.approx(g * sigmoid * u, rel=1e-12, abs=1e-300)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_silu_at_the_ends(dtype: type) -> None:
    top = np.finfo(dtype).max
    with np.errstate(all="raise", under="ignore"):
        found = glu.silu(np.array([-top, -200, 0, 200, top], dtype))
    assert found.dtype == dtype
    np.testing.assert_allclose(found, [0, 0, 0, 200, top], atol=1e-30)


def test_every_activation_has_a_name_and_no_other() -> None:
    gate = draw(7, 2, 3)
    for name in glu.ACTIVATIONS:
        assert glu.cpu(gate, np.ones((2, 3)), activation=name).shape == (2, 3)
    with pytest.raises(KeyError):
        glu.cpu(gate, gate, activation="unheard-of")


@given(st.lists(st.integers(0, 4), min_size=1, max_size=6), st.sampled_from([1.0, 24.0]), DTYPES)
def test_embedding(ids: list[int], scale: float, dtype: type) -> None:
    table = draw(8, 5, 3, dtype=dtype)
    found = embedding.cpu(np.array(ids), table, scale=scale)
    assert found.dtype == dtype
    assert np.array_equal(found, np.stack([table[i] for i in ids]) * dtype(scale))


@pytest.mark.parametrize("token", [-1, 5])
def test_embedding_of_an_id_outside_the_vocabulary(token: int) -> None:
    with pytest.raises(IndexError):
        embedding.cpu(np.array([0, token]), draw(9, 5, 3))


@given(arrays(2, 3), arrays(2, 3))
def test_add(x: np.ndarray, y: np.ndarray) -> None:
    assert add.cpu(x, y).tolist() == [[a + b for a, b in zip(*rows)] for rows in zip(x.tolist(), y.tolist())]


def test_no_op_writes_into_its_inputs() -> None:
    x, y, gain = draw(10, 2, 4), draw(11, 2, 4), draw(12, 4)
    for array in (x, y, gain):
        array.flags.writeable = False
    for result in (
        add.cpu(x, y),
        glu.cpu(x, y),
        rms_norm.cpu(x, gain, eps=1e-5),
        linear.cpu(x, y),
        linear.cpu(x, y, np.zeros(2)),
    ):
        assert not any(np.shares_memory(result, array) for array in (x, y, gain))
