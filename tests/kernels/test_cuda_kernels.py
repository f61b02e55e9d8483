"""Every CUDA kernel against the CPU function that defines its op, in float64 from the same inputs."""

import ml_dtypes
import numpy as np
import pytest
from tensortrace.kernels import (
    add,
    attention,
    clamped_glu,
    dequantize,
    embedding,
    expert_linear,
    expert_sum,
    expert_weights,
    gated_add,
    gelu,
    glu,
    layer_norm,
    linear,
    rms_norm,
    rope,
    scale,
    top_k,
)
from tensortrace.kernels.dequantize import LAYOUT, Blocks

DTYPES = (np.float32, np.float16, ml_dtypes.bfloat16)
# what rounding the result to the storage type alone gives is a third of this
NRMSE = {"float32": 1e-6, "float16": 1e-3, "bfloat16": 8e-3}


def draw(*shape, dtype=np.float32, seed=0, scale=1.0):
    return (scale * np.random.default_rng([seed, *shape]).standard_normal(shape)).astype(dtype)


def exact(array):
    return np.asarray(array).astype(np.float64)


def nrmse(got, want):
    """Root-mean-square error over the root-mean-square of what is wanted; infinities must agree."""
    got, want = exact(got), exact(want)
    assert got.shape == want.shape
    finite = np.isfinite(want)
    assert np.array_equal(got[~finite], want[~finite])
    error = np.linalg.norm(got[finite] - want[finite])
    return error / np.linalg.norm(want[finite]) if error else 0.0


def assert_close(got, want, dtype):
    assert nrmse(got, want) <= NRMSE[np.dtype(dtype).name]


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


ROPE_SHAPES = [  # tokens, heads, dim, dims
    (1, 9, 64, 64),
    (17, 3, 80, 32),
    (130, 1, 16, 16),
    (2, 5, 256, 128),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pairing", sorted(rope.PAIRINGS))
@pytest.mark.parametrize(("tokens", "heads", "dim", "dims"), ROPE_SHAPES)
@pytest.mark.parametrize("factors", [None, np.float32])
def test_rope(device, tokens, heads, dim, dims, pairing, factors, dtype):
    x = draw(tokens, heads, dim, dtype=dtype)
    positions = np.random.default_rng(1).integers(0, 131_072, tokens, dtype=np.int32)
    if factors is not None:
        factors = np.linspace(1, 32, dims // 2, dtype=np.float32)
    params = {"base": 500_000.0, "dims": dims, "pairing": pairing}
    got = device.run(
        lambda: rope.cuda(
            device.put(x), device.put(positions), None if factors is None else device.put(factors), **params
        )
    )
    assert got.dtype == dtype
    assert_close(got, rope.cpu(exact(x), positions, factors, **params), dtype)
    assert np.array_equal(got[..., dims:], x[..., dims:])


@pytest.mark.parametrize("pairing", sorted(rope.PAIRINGS))
@pytest.mark.parametrize("last", [99, 100])
@pytest.mark.parametrize(
    "scaling", [{"scale": 0.25}, {"scale": 0.1, "ramp": (2.3, 9.0)}, {"scale": 0.5, "ramp": (4.0, 4.0)}]
)
def test_rope_beyond_the_context(device, scaling, last, pairing):
    x, positions = draw(4, 3, 48), np.arange(last - 3, last + 1, dtype=np.int32)
    factors = [np.linspace(1, top, 24, dtype=np.float32) for top in (4, 40)]
    params = {"base": 1e4, "dims": 48, "pairing": pairing, "magnitude": 1.3, "original": 100, **scaling}
    got = device.run(lambda: rope.cuda(*map(device.put, (x, positions, *factors)), **params))
    assert_close(got, rope.cpu(exact(x), positions, *factors, **params), np.float32)
    chosen = {**params, "original": 0 if last >= 100 else 101}
    assert np.array_equal(
        rope.cpu(x, positions, *factors, **chosen), rope.cpu(x, positions, *factors, **params)
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 5, 129])
def test_rope_that_fills_the_cache(device, tokens, dtype):
    heads, kv_heads, dim, max_len, used = 6, 2, 64, 140, tokens + 7
    q, k, v = (draw(tokens, n, dim, dtype=dtype, seed=n) for n in (heads, kv_heads, kv_heads))
    positions = np.arange(7, used, dtype=np.int32)
    params = {"base": 10_000.0, "dims": dim, "pairing": "interleaved"}

    def compute():
        caches = device.empty((max_len, kv_heads, dim), dtype), device.empty((max_len, kv_heads, dim), dtype)
        rotated = rope.cuda_cached(
            *map(device.put, (q, k, v, positions)),
            **params,
            cache=caches,
            kv_len=device.put(np.array([used], np.int32)),
        )
        return *rotated, *caches

    q_rope, k_rope, k_cache, v_cache = device.run(compute)
    assert_close(q_rope, rope.cpu(exact(q), positions, **params), dtype)
    assert_close(k_rope, rope.cpu(exact(k), positions, **params), dtype)
    assert np.array_equal(k_cache[7:used], k_rope)
    assert np.array_equal(v_cache[7:used], v)
    for cache in (k_cache, v_cache):
        assert np.isnan(exact(cache[:7])).all()
        assert np.isnan(exact(cache[used:])).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 5, 129])
def test_keys_without_positions_fill_the_cache_as_they_are(device, tokens, dtype):
    kv_heads, dim, max_len, used = 3, 20, 140, tokens + 7
    k, v = (draw(tokens, kv_heads, dim, dtype=dtype, seed=seed) for seed in (0, 1))

    def compute():
        cache = device.empty((max_len, kv_heads, dim), dtype), device.empty((max_len, kv_heads, dim), dtype)
        kv_len = device.put(np.array([used], np.int32))
        rope.cuda_append(device.put(k), device.put(v), cache=cache, kv_len=kv_len)
        return cache

    for cache, given in zip(device.run(compute), (k, v), strict=True):
        assert np.array_equal(cache[7:used], given)
        assert np.isnan(exact(cache[:7])).all()
        assert np.isnan(exact(cache[used:])).all()


def test_rope_refuses_what_it_cannot_rotate(device):
    x, positions = np.zeros((1, 1, 8), np.float32), np.zeros(1, np.int32)
    with pytest.raises(ValueError, match="cannot rotate 7 of 8"):
        rope.cuda(x, positions, base=1e4, dims=7, pairing="interleaved")
    with pytest.raises(ValueError, match="unknown RoPE pairing 'both'"):
        rope.cuda(x, positions, base=1e4, dims=8, pairing="both")


# where a block keeps its float16 scales; every other byte may be anything
SCALES = {
    **dict.fromkeys(("Q8_0", "Q4_0", "Q5_0"), (0,)),
    **dict.fromkeys(("Q4_1", "Q5_1", "Q4_K", "Q5_K"), (0, 2)),
    "Q6_K": (208,),
}
PLAIN = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}


def random_blocks(kind, rows, columns, seed=0):
    """Random bytes with sane scales, among them 0 and one that is subnormal in float16."""
    if kind in PLAIN:
        return Blocks(draw(rows, columns, dtype=PLAIN[kind], seed=seed).view(np.uint8), kind)
    rng = np.random.default_rng([seed, rows, columns])
    weights, size = LAYOUT[kind]
    data = rng.integers(0, 256, (rows, columns // weights, size), dtype=np.uint8)
    for at in SCALES[kind]:
        scale = rng.uniform(-0.01, 0.01, data.shape[:2]).astype(np.float16)
        scale.flat[1:3] = 0, 3e-7
        data[..., at : at + 2] = scale[..., None].view(np.uint8)
    return Blocks(data.reshape(rows, -1), kind)


def put_blocks(device, blocks):
    return Blocks(device.put(blocks.data), blocks.kind)


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


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1536), (3, 2, 577)])
def test_clamped_glu(device, shape, dtype):
    gate, up = draw(*shape, dtype=dtype, seed=1, scale=8), draw(*shape, dtype=dtype, seed=2, scale=8)
    params = {"alpha": 1.702, "limit": 7.0}
    got = device.run(lambda: clamped_glu.cuda(device.put(gate), device.put(up), **params))
    assert got.dtype == dtype
    assert_close(got, clamped_glu.cpu(exact(gate), exact(up), **params), dtype)


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


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "columns", "dim"), [(1, 576, 576), (5, 33, 17), (2, 2048, 300)])
def test_gated_add(device, tokens, columns, dim, dtype):
    x, y = draw(tokens, dim, dtype=dtype, seed=1), draw(tokens, dim, dtype=dtype, seed=2)
    h, gate = draw(tokens, columns, dtype=dtype, seed=3), draw(columns, seed=4, scale=columns**-0.5)
    got = device.run(lambda: gated_add.cuda(*map(device.put, (x, y, h, gate))))
    assert got.dtype == dtype
    assert_close(got, gated_add.cpu(*map(exact, (x, y, h, gate))), dtype)


def test_rows_that_no_kernel_can_take_are_refused(device):
    odd = Blocks(np.zeros((2, 52), np.uint8), "F32")
    with pytest.raises(ValueError, match="rows of 13 elements"):
        embedding.cuda(np.zeros(1, np.int32), odd)
    with pytest.raises(ValueError, match="rows of 13 weights"):
        dequantize.cuda(odd)


EVERYTHING = frozenset(attention.EXTRAS)


def check_attention(device, q, k, v, *, sinks=None, kv_len=None, want=EVERYTHING, **params):
    """Every wanted result against the CPU; `kv_len` runs it on a cache whose rest holds NaN."""
    params = {"scale": q.shape[-1] ** -0.5, **params}
    keys = len(k)
    if kv_len is not None:
        unused = np.full((kv_len - keys, *k.shape[1:]), np.nan, k.dtype)
        k, v = np.concatenate([k, unused]), np.concatenate([v, unused])

    def compute():
        length = None if kv_len is None else device.put(np.array([keys], np.int32))
        extra = () if sinks is None else (device.put(sinks),)
        return attention.cuda(*map(device.put, (q, k, v)), *extra, want=want, kv_len=length, **params)

    got = device.run(compute)
    extra = () if sinks is None else (exact(sinks),)
    expected = attention.cpu(exact(q), exact(k[:keys]), exact(v[:keys]), *extra, want=want, **params)
    assert set(got) == set(expected)
    for name, array in expected.items():
        axis = {"scores": 2, "probs": 2, "m_tiles": 0, "l_tiles": 0}.get(name)
        used = got[name] if axis is None else np.take(got[name], range(array.shape[axis]), axis)
        unused = got[name] if axis is None else np.delete(got[name], range(array.shape[axis]), axis)
        assert axis is None or np.isnan(unused).all(), name
        assert got[name].dtype == (q.dtype if name == "out" else np.float32)
        # a 16-bit engine rounds its inputs and its output; what lies between is float32 here
        assert nrmse(used, array) <= NRMSE[got[name].dtype.name], name


def attention_inputs(queries, keys, heads, kv_heads, dim, dtype=np.float32):
    """Scores of unit variance: the running maximum moves in later tiles too."""
    q = draw(queries, heads, dim, dtype=dtype, seed=1)
    return q, *(draw(keys, kv_heads, dim, dtype=dtype, seed=seed) for seed in (2, 3))


@pytest.mark.parametrize("length", [1, 2, 17, 127, 128, 129, 300])
@pytest.mark.parametrize("tile", [128, 48, 100])
def test_attention_of_a_prompt(device, length, tile):
    check_attention(device, *attention_inputs(length, length, 3, 1, 64), tile=tile)


@pytest.mark.parametrize("queries", [1, 5])
@pytest.mark.parametrize("keys", [128, 130, 300])
@pytest.mark.parametrize("tile", [128, 100])
def test_attention_with_history(device, queries, keys, tile):
    check_attention(device, *attention_inputs(queries, keys, 4, 2, 64), tile=tile, kv_len=keys + 37)


def test_attention_decode_in_a_large_cache(device):
    """A block takes more keys than it holds in shared memory at a time."""
    check_attention(device, *attention_inputs(1, 333, 3, 1, 16), tile=100, kv_len=17_000)


def test_attention_does_not_read_what_lies_before_the_window(device):
    q, k, v = attention_inputs(1, 200, 2, 1, 32)
    k[:64] = v[:64] = np.nan
    params = {"scale": 0.2, "window": 70, "tile": 32, "want": EVERYTHING}
    got = device.run(lambda: attention.cuda(*map(device.put, (q, k, v)), **params))
    k[:64] = v[:64] = 0
    expected = attention.cpu(*map(exact, (q, k, v)), **params)
    for name, array in expected.items():
        assert nrmse(got[name], array) <= 1e-6, name


@pytest.mark.gpu
@pytest.mark.parametrize("length", [1000, 4096])
@pytest.mark.parametrize("tile", [128, 100])
@pytest.mark.parametrize("queries", [1, 5, None])
def test_attention_of_a_long_prompt(gpu_device, length, tile, queries):
    inputs = attention_inputs(queries or length, length, 3, 1, 64)
    check_attention(gpu_device, *inputs, tile=tile, kv_len=length + 100)


@pytest.mark.parametrize("queries", [1, 70])
@pytest.mark.parametrize("dim", [16, 30, 64, 80, 128, 256])
@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (3, 1), (8, 1)])
def test_attention_of_heads(device, queries, dim, heads, kv_heads):
    check_attention(device, *attention_inputs(queries, 71, heads, kv_heads, dim), tile=48)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("queries", [1, 140])
@pytest.mark.parametrize(
    "params",
    [
        {"window": 1},
        {"window": 30},
        {"window": 100, "softcap": 5.0},
        {"softcap": 0.5},
        {"causal": False},
        {"causal": False, "window": 90},
        {"scale": 0.3},
    ],
    ids=str,
)
def test_attention_variants(device, queries, params, dtype):
    check_attention(device, *attention_inputs(queries, 150, 2, 1, 64, dtype), tile=48, **params)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("queries", [1, 140])
@pytest.mark.parametrize("params", [{}, {"window": 30}, {"softcap": 5.0}], ids=str)
def test_attention_with_sinks(device, queries, params, dtype):
    sinks = np.array([-3, 0, 2, 40], np.float32)  # the last one takes nearly all of the weight
    inputs = attention_inputs(queries, 150, 4, 2, 64, dtype)
    check_attention(device, *inputs, sinks=sinks, tile=48, kv_len=170, **params)


@pytest.mark.parametrize("queries", [1, 9])
@pytest.mark.parametrize(
    "want", [set(), {"probs"}, {"scores"}, {"m_tiles"}, {"l"}, {"m", "l_tiles", "probs"}]
)
def test_attention_gives_what_is_wanted(device, queries, want):
    check_attention(device, *attention_inputs(queries, 60, 2, 1, 32), tile=16, want=frozenset(want))


@pytest.mark.parametrize("queries", [1, 9])
def test_attention_of_scores_that_overflow_exp(device, queries):
    q, k, v = attention_inputs(queries, 90, 2, 1, 64)
    check_attention(device, 30 * q, 30 * k, v, tile=32)


@pytest.mark.parametrize("keys", [1, 2, 127, 128, 129, 200])
def test_attention_decode_again_and_again(device, keys):
    """One set of outputs and one workspace serve every step of a decode, as in a captured graph."""
    q, k, v = attention_inputs(1, 200, 4, 2, 64)
    params = {"scale": 0.125, "tile": 64, "want": EVERYTHING}

    def compute():
        out = attention.cuda_outputs(q.shape, k.shape, tile=64, want=EVERYTHING, dtype=q.dtype)
        arrays = [device.put(array) for array in (q, k, v)]
        for length in (200, keys):
            got = attention.cuda(*arrays, kv_len=device.put(np.array([length], np.int32)), out=out, **params)
        return got

    got = device.run(compute)
    expected = attention.cpu(exact(q), exact(k[:keys]), exact(v[:keys]), **params)
    assert_close(got["out"], expected["out"], np.float32)
    assert_close(got["probs"][..., :keys], expected["probs"], np.float32)
    assert_close(got["l_tiles"][: len(expected["l_tiles"])], expected["l_tiles"], np.float32)


def test_attention_refuses_what_it_has_no_kernel_for(device):
    q = np.zeros((2, 1, 300), np.float32)
    with pytest.raises(ValueError, match="head size 300"):
        attention.cuda(q, q, q, scale=1.0)
    with pytest.raises(ValueError, match="not two-pass"):
        attention.cuda(q, q, q, scale=1.0, softmax="two-pass")
    with pytest.raises(TypeError, match="no kernels for float64"):
        attention.cuda(*(np.zeros((2, 1, 64)),) * 3, scale=1.0)


ROTATION = {"base": 1e4, "dims": 16, "pairing": "interleaved"}
ATTENDING = {"scale": 0.25, "tile": 16, "want": EVERYTHING}


def layer_weights():
    shapes = {"q": (64, 64), "k": (32, 64), "v": (32, 64), "o": (64, 64)}
    shapes |= {"gate": (96, 64), "up": (96, 64), "down": (64, 96), "embd": (50, 64)}
    return {n: random_blocks("Q4_1", *shape, seed=i) for i, (n, shape) in enumerate(shapes.items())}


def layer_on_cpu(ids, weights, gain):
    """Every result of the last of `ids`, from all of them at once in float64."""
    w = {name: exact(dequantize.cpu(blocks)) for name, blocks in weights.items()}
    r = {"embd": embedding.cpu(ids, w["embd"])}
    r["norm"] = rms_norm.cpu(r["embd"], exact(gain), eps=1e-5)
    q, k = (linear.cpu(r["norm"], w[name], heads=heads) for name, heads in (("q", 4), ("k", 2)))
    v = linear.cpu(r["norm"], w["v"], heads=2)
    r["q"], r["k"] = (rope.cpu(x, np.arange(len(ids)), **ROTATION) for x in (q, k))
    attended = attention.cpu(r["q"], r["k"], v, **ATTENDING)
    r["resid"] = r["embd"] + linear.cpu(attended["out"], w["o"])
    r["ffn_norm"] = rms_norm.cpu(r["resid"], exact(gain), eps=1e-5)
    r["act"] = glu.cpu(linear.cpu(r["ffn_norm"], w["gate"]), linear.cpu(r["ffn_norm"], w["up"]))
    r["end"] = r["resid"] + linear.cpu(r["act"], w["down"])
    last = {name: array[-1:] for name, array in r.items()}
    for name, array in attended.items():
        query_axis = {"out": 0, "m_tiles": 2, "l_tiles": 2}.get(name, 1)
        last[name] = array.take([-1], query_axis)
    return last


def layer_step(device, weights, gain, token, position, kv_len):
    """A decode step without allocations, and the arrays that it fills."""
    w = {name: put_blocks(device, blocks) for name, blocks in weights.items()}
    gain = device.put(gain)
    r = {name: device.empty((1, blocks.shape[0]), np.float32) for name, blocks in weights.items()}
    r |= {name: device.empty((1, 64), np.float32) for name in ("embd", "norm", "resid", "ffn_norm", "end")}
    r["act"] = device.empty((1, 96), np.float32)
    raw = [r[name].reshape(1, heads, 16) for name, heads in (("q", 4), ("k", 2), ("v", 2))]
    rotated = r["q"], r["k"] = tuple(device.empty(x.shape, np.float32) for x in raw[:2])
    cache = tuple(device.empty((40, 2, 16), np.float32) for _ in "kv")
    attended = attention.cuda_outputs((1, 4, 16), (40, 2, 16), tile=16, want=EVERYTHING, dtype=np.float32)

    def step():
        embedding.cuda(token, w["embd"], out=r["embd"])
        rms_norm.cuda(r["embd"], gain, eps=1e-5, out=r["norm"])
        linear.cuda_many(r["norm"], [w[name] for name in "qkv"], [None] * 3, out=raw)
        rope.cuda_cached(*raw, position, **ROTATION, cache=cache, kv_len=kv_len, out=rotated)
        attention.cuda(r["q"], *cache, **ATTENDING, kv_len=kv_len, out=attended)
        linear.cuda(attended["out"], w["o"], out=r["o"])
        rms_norm.cuda_add(r["embd"], r["o"], gain, eps=1e-5, out=(r["resid"], r["ffn_norm"]))
        linear.cuda_many(r["ffn_norm"], [w["gate"], w["up"]], [None] * 2, out=[r["gate"], r["up"]])
        glu.cuda(r["gate"], r["up"], out=r["act"])
        linear.cuda(r["act"], w["down"], out=r["down"])
        add.cuda(r["resid"], r["down"], out=r["end"])

    return step, {**r, **{name: attended[name] for name in ("out", *EVERYTHING)}}


def test_decode_step_as_a_graph(device):
    """A layer of decode, captured once and replayed for every token: each replay sees its own inputs."""
    ids = np.random.default_rng(0).integers(0, 50, 35, dtype=np.int32)
    weights, gain = layer_weights(), draw(64)

    def compute():
        inputs = [device.put(np.array([n], np.int32)) for n in (ids[0], 0, 1)]
        step, results = layer_step(device, weights, gain, *inputs)
        replay = device.capture(step)
        recorded = {}
        for n, token in enumerate(ids):
            for array, value in zip(inputs, (token, n, n + 1)):
                device.fill(array, value)
            replay()
            recorded |= {(n, name): device.get(array).copy() for name, array in results.items()}
        return recorded

    recorded = device.run(compute)
    for n in range(len(ids)):
        for name, want in layer_on_cpu(ids[: n + 1], weights, gain).items():
            got = recorded[n, name]
            got = got[: n // 16 + 1] if name.endswith("_tiles") else got
            got = got[..., : n + 1] if name in ("scores", "probs") else got
            assert nrmse(got, want) <= 5e-6, (n, name)
