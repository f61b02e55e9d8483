"""The CUDA kernels of small ops and norms against the CPU functions that define them, in float64."""

import numpy as np
import pytest
from cuda_arrays import DTYPES, assert_close, draw, exact
from tensortrace.kernels import add, clamped_glu, gated_add, gelu, glu, layer_norm, rms_norm, scale


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 576), (17, 577), (3, 1)])
@pytest.mark.parametrize("params", [{}, {"scale": 0.22}])
def test_add(device, shape, dtype, params):
    x, y = draw(*shape, dtype=dtype, seed=1), draw(*shape, dtype=dtype, seed=2)
    got = device.run(lambda: add.cuda(device.put(x), device.put(y), **params))
    assert got.dtype == dtype
    assert_close(got, add.cpu(exact(x), exact(y), **params), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("params", [{"factor": 0.125}, {"softcap": 30.0}, {"factor": 2.0, "softcap": 5.0}])
def test_scale(device, params, dtype):
    x = draw(3, 577, dtype=dtype, scale=20)
    got = device.run(lambda: scale.cuda(device.put(x), **params))
    assert got.dtype == dtype
    assert_close(got, scale.cpu(exact(x), **params), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1536), (17, 1535), (3, 1)])
def test_gelu(device, shape, dtype):
    x = draw(*shape, dtype=dtype, scale=3)
    got = device.run(lambda: gelu.cuda(device.put(x)))
    assert got.dtype == dtype
    assert_close(got, gelu.cpu(exact(x)), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 576), (17, 577), (3, 2), (2, 5, 80), (1, 16384)])
def test_layer_norm(device, shape, dtype):
    x, gain, bias = draw(*shape, dtype=dtype) + dtype(3), draw(shape[-1], seed=2), draw(shape[-1], seed=3)
    got = device.run(lambda: layer_norm.cuda(*map(device.put, (x, gain, bias)), eps=1e-5))
    assert got.dtype == dtype
    assert_close(got, layer_norm.cpu(exact(x), exact(gain), exact(bias), eps=1e-5), dtype)


def test_rms_norm_of_several_axes(device):
    x, gain = draw(3, 5, 12), draw(60, seed=2)
    got = device.run(lambda: rms_norm.cuda(device.put(x), device.put(gain), eps=1e-5))
    flat = rms_norm.cpu(exact(x).reshape(3, 60), exact(gain), eps=1e-5)
    assert_close(got, flat.reshape(x.shape), np.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 576), (17, 577), (3, 2), (2, 5, 80), (1, 16384)])
def test_rms_norm(device, shape, dtype):
    x, gain = draw(*shape, dtype=dtype, seed=1), draw(shape[-1], seed=2)
    got = device.run(lambda: rms_norm.cuda(device.put(x), device.put(gain), eps=1e-5))
    assert got.dtype == dtype
    assert_close(got, rms_norm.cpu(exact(x), exact(gain), eps=1e-5), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 576), (17, 577)])
def test_rms_norm_of_a_sum(device, shape, dtype):
    x, y, gain = draw(*shape, dtype=dtype, seed=1), draw(*shape, dtype=dtype, seed=2), draw(shape[-1], seed=3)
    total, normed = device.run(
        lambda: rms_norm.cuda_add(device.put(x), device.put(y), device.put(gain), eps=1e-5)
    )
    assert_close(total, exact(x) + exact(y), dtype)
    assert_close(normed, rms_norm.cpu(exact(total), exact(gain), eps=1e-5), dtype)


def test_rms_norm_eps_decides_for_tiny_rows(device):
    x, gain = draw(2, 64, scale=1e-4), np.ones(64, np.float32)
    got = device.run(lambda: rms_norm.cuda(device.put(x), device.put(gain), eps=1e-5))
    assert_close(got, rms_norm.cpu(exact(x), exact(gain), eps=1e-5), np.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1536), (17, 1535), (3, 1)])
@pytest.mark.parametrize("activation", sorted(glu.ACTIVATIONS))
def test_glu(device, activation, shape, dtype):
    gate, up = draw(*shape, dtype=dtype, seed=1, scale=30), draw(*shape, dtype=dtype, seed=2)
    got = device.run(lambda: glu.cuda(device.put(gate), device.put(up), activation=activation))
    assert got.dtype == dtype
    assert_close(got, glu.cpu(exact(gate), exact(up), activation=activation), dtype)


def test_glu_of_extremes(device):
    gate = np.array([[-1e30, -200, -88.8, -0.0, 0.0, 88.8, 200, 1e30]], np.float32)
    up = np.ones_like(gate)
    got = device.run(lambda: glu.cuda(device.put(gate), device.put(up)))
    np.testing.assert_allclose(got, glu.cpu(exact(gate), exact(up)), rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1536), (3, 2, 577)])
def test_clamped_glu(device, shape, dtype):
    gate, up = draw(*shape, dtype=dtype, seed=1, scale=8), draw(*shape, dtype=dtype, seed=2, scale=8)
    params = {"alpha": 1.702, "limit": 7.0}
    got = device.run(lambda: clamped_glu.cuda(device.put(gate), device.put(up), **params))
    assert got.dtype == dtype
    assert_close(got, clamped_glu.cpu(exact(gate), exact(up), **params), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "columns", "dim"), [(1, 576, 576), (5, 33, 17), (2, 2048, 300)])
def test_gated_add(device, tokens, columns, dim, dtype):
    x, y = draw(tokens, dim, dtype=dtype, seed=1), draw(tokens, dim, dtype=dtype, seed=2)
    h, gate = draw(tokens, columns, dtype=dtype, seed=3), draw(columns, seed=4, scale=columns**-0.5)
    got = device.run(lambda: gated_add.cuda(*map(device.put, (x, y, h, gate))))
    assert got.dtype == dtype
    assert_close(got, gated_add.cpu(*map(exact, (x, y, h, gate))), dtype)
