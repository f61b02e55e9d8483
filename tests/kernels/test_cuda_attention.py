"""The CUDA kernel of attention against the CPU function that defines its op, in float64, same inputs."""

import numpy as np
import pytest
from cuda_arrays import DTYPES, NRMSE, assert_close, draw, exact, nrmse
from tensortrace.kernels import attention

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


@pytest.mark.parametrize(("keys", "tile"), [(700, 1), (1300, 2)])
def test_attention_decode_with_more_chunks_than_are_merged_at_once(device, keys, tile):
    """The heads of a group are merged in batches; a tile of one key makes a chunk of it."""
    check_attention(device, *attention_inputs(1, keys, 8, 1, 16), tile=tile)
    check_attention(device, *attention_inputs(1, keys - 3, 8, 1, 16), tile=tile, kv_len=keys)


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
