"""The CUDA kernels that read quantised weights against the CPU functions that define them, in float64."""

import numpy as np
import pytest
from cuda_arrays import DTYPES, assert_close, draw, exact, put_blocks, random_blocks
from tensortrace.kernels import dequantize, embedding, linear
from tensortrace.kernels.dequantize import LAYOUT, Blocks


def test_layout_is_that_of_gguf():
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    assert {kind: GGML_QUANT_SIZES[GGMLQuantizationType[kind]] for kind in LAYOUT} == LAYOUT


@pytest.mark.parametrize("kind", LAYOUT)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "columns"), [(1, 256), (7, 768)])
def test_dequantize(device, kind, dtype, rows, columns):
    blocks = random_blocks(kind, rows, columns)
    got = device.run(lambda: dequantize.cuda(put_blocks(device, blocks), dtype=dtype))
    assert got.dtype == dtype
    assert np.array_equal(got, dequantize.cpu(blocks).astype(dtype))


@pytest.mark.parametrize("kind", LAYOUT)
@pytest.mark.parametrize("dtype", DTYPES)
def test_embedding(device, kind, dtype):
    table = random_blocks(kind, 11, 512)
    ids = np.array([10, 0, 3, 3], np.int32)
    got = device.run(
        lambda: embedding.cuda(device.put(ids), put_blocks(device, table), scale=24.0, dtype=dtype)
    )
    assert got.dtype == dtype
    assert np.array_equal(got, embedding.cpu(ids, dequantize.cpu(table), scale=24.0).astype(dtype))


def test_embedding_of_unknown_ids_is_nan(device):
    table, ids = random_blocks("Q4_1", 5, 64), np.array([-1, 4, 5], np.int32)
    got = device.run(lambda: embedding.cuda(device.put(ids), put_blocks(device, table)))
    assert np.isnan(got[[0, 2]]).all()
    assert np.array_equal(got[1], dequantize.cpu(table)[4])


@pytest.mark.parametrize("kind", LAYOUT)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 3])
def test_linear(device, kind, dtype, tokens):
    weight, bias = random_blocks(kind, 37, 1536), draw(37)
    x = draw(tokens, 24, 64, dtype=dtype, seed=1)
    got = device.run(lambda: linear.cuda(device.put(x), put_blocks(device, weight), device.put(bias)))
    assert got.dtype == dtype
    values = dequantize.cpu(weight)
    if tokens > 1:  # the product of several tokens takes the weight in x's type
        values = values.astype(dtype)
    assert_close(got, linear.cpu(exact(x), exact(values), exact(bias)), dtype)


@pytest.mark.parametrize("columns", [8, 24, 288, 576, 8192])
@pytest.mark.parametrize("kind", ["F32", "Q4_0"])
def test_linear_of_widths(device, kind, columns):
    if columns % LAYOUT[kind][0]:
        columns = LAYOUT[kind][0]
    weight, x = random_blocks(kind, 5, columns), draw(1, columns, seed=1)
    got = device.run(lambda: linear.cuda(device.put(x), put_blocks(device, weight)))
    assert_close(got, linear.cpu(exact(x), exact(dequantize.cpu(weight))), np.float32)


@pytest.mark.parametrize("tokens", [1, 2])
def test_linear_of_an_odd_width_and_heads(device, tokens):
    weight, x = random_blocks("F32", 6, 13), draw(tokens, 13, seed=1)
    got = device.run(lambda: linear.cuda(device.put(x), put_blocks(device, weight), heads=3))
    assert_close(got, linear.cpu(exact(x), exact(dequantize.cpu(weight)), heads=3), np.float32)


@pytest.mark.parametrize("tokens", [1, 2])
@pytest.mark.parametrize("kinds", [("Q4_1",) * 3, ("Q4_K", "Q4_K", "Q6_K"), ("F16", "F32", "F16")])
def test_linear_of_many(device, kinds, tokens):
    weights = [random_blocks(kind, rows, 256) for kind, rows in zip(kinds, (9, 3, 5))]
    biases = [draw(9), None, draw(5)][: len(kinds)]
    x = draw(tokens, 256, seed=1)

    def compute():
        on_device = [put_blocks(device, weight) for weight in weights]
        return tuple(
            linear.cuda_many(device.put(x), on_device, [b if b is None else device.put(b) for b in biases])
        )

    for got, weight, bias in zip(device.run(compute), weights, biases):
        values = exact(dequantize.cpu(weight))
        assert_close(got, linear.cpu(exact(x), values, None if bias is None else exact(bias)), np.float32)


def test_rows_that_no_kernel_can_take_are_refused(device):
    odd = Blocks(np.zeros((2, 52), np.uint8), "F32")
    with pytest.raises(ValueError, match="rows of 13 elements"):
        embedding.cuda(np.zeros(1, np.int32), odd)
    with pytest.raises(ValueError, match="rows of 13 weights"):
        dequantize.cuda(odd)
