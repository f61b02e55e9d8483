"""The CUDA kernel of RoPE against the CPU function that defines its op, in float64, same inputs."""

import numpy as np
import pytest
from cuda_arrays import DTYPES, assert_close, draw, exact
from tensortrace.kernels import rope

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
