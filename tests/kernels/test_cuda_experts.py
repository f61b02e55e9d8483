"""The CUDA kernels of experts against the CPU functions that define their ops, in float64, same inputs."""

import numpy as np
import pytest
from cuda_arrays import DTYPES, assert_close, draw, exact, put_blocks, random_blocks
from tensortrace.kernels import dequantize, expert_linear, expert_sum, expert_weights, top_k
from tensortrace.kernels.dequantize import LAYOUT, Blocks


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "experts", "k"), [(1, 4, 2), (70, 128, 8), (3, 60, 60)])
def test_choice_of_experts(device, tokens, experts, k, dtype):
    router = draw(tokens, experts, dtype=dtype, scale=3)
    router[0, :2] = 20  # of equal ones the first is taken
    ids = device.run(lambda: top_k.cuda(device.put(router), k=k))
    assert ids.dtype == np.int32
    assert np.array_equal(ids, top_k.cpu(exact(router), k=k))
    for params in ({"renormalised": True}, {"renormalised": False, "scale": 2.5}):
        check_expert_weights(device, router, ids, params)


def check_expert_weights(device, router, ids, params):
    got = device.run(lambda: expert_weights.cuda(device.put(router), device.put(ids), **params))
    assert got.dtype == router.dtype
    assert_close(got, expert_weights.cpu(exact(router), ids, **params), router.dtype)


@pytest.mark.parametrize("kind", LAYOUT)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("per_slot", [False, True])
def test_expert_linear(device, kind, dtype, per_slot):
    flat, bias = random_blocks(kind, 5 * 9, 512), draw(5, 9)
    weight = Blocks(flat.data.reshape(5, 9, -1), kind)
    ids = np.array([[4, 0], [1, 1], [2, 4]], np.int32)
    x = draw(3, 2, 512, dtype=dtype, seed=1) if per_slot else draw(3, 512, dtype=dtype, seed=1)

    def compute():
        biases = Blocks(device.put(bias.view(np.uint8)), "F32")
        return expert_linear.cuda(device.put(x), device.put(ids), put_blocks(device, weight), biases)

    got = device.run(compute)
    assert got.dtype == dtype
    values = exact(dequantize.cpu(flat)).reshape(5, 9, 512)
    assert_close(got, expert_linear.cpu(exact(x), ids, values, exact(bias)), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 8, 576), (5, 2, 33)])
def test_expert_sum(device, shape, dtype):
    x, weights = draw(*shape, dtype=dtype, seed=1), draw(*shape[:2], dtype=dtype, seed=2)
    got = device.run(lambda: expert_sum.cuda(device.put(x), device.put(weights)))
    assert got.dtype == dtype
    assert_close(got, expert_sum.cpu(exact(x), exact(weights)), dtype)
