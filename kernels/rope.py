"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864; llama.cpp `ggml_rope_ext`).

Two conventions of which elements form a rotated pair are in use, and exchanging them is a classic bug:
`interleaved` pairs (2i, 2i+1) (GPT-J, Meta's Llama, GGUF's llama architecture) and `half-split` pairs
(i, i + dims/2) (GPT-NeoX, transformers).

Models that run past the context they were trained on change the frequencies.  `factors` divide each pair's
(Llama 3, LongRoPE); `scale` multiplies them (position interpolation, arXiv:2306.15595), with `ramp` only
those of slow pairs (YaRN, arXiv:2309.00071, which also stretches the result by `magnitude`).
"""

from functools import lru_cache
from typing import Any

import numpy as np

from . import cuda as gpu
from . import native
from .shares import SHARE, share_out

MIN_RAMP = 1e-3  # pairs; keeps a ramp of no width from dividing by zero
PAIRINGS = {"interleaved": "true", "half-split": "false"}  # the INTERLEAVED of rope.cu
EXPRESSIONS = {"rope.cu": [f"rope<{t}, {p}>" for t in gpu.STORAGE.values() for p in PAIRINGS.values()]}

SCALING = np.dtype(  # struct Scaling of rope.cu
    [(n, "f8") for n in ("base", "scale", "low", "steepness", "magnitude")] + [("original", "i8")]
)


def inverse_frequencies(
    dims: int,
    base: float,
    factors: np.ndarray | None = None,
    scale: float = 1.0,
    ramp: tuple[float, float] | None = None,
) -> np.ndarray:
    """base^(-2i/dims) for i < dims/2, divided by `factors` [dims/2] where given -> float64, rad/position.

    `scale` multiplies all of them, or with `ramp` = (low, high) a part that grows from none at pair `low` to
    all of it at pair `high`.
    """
    freqs = float(base) ** (-np.arange(0, dims, 2, dtype=np.float64) / dims)
    freqs = freqs if factors is None else freqs / factors.astype(np.float64)
    if ramp is None:
        return freqs * scale
    low, high = ramp
    interpolated = np.clip((np.arange(dims // 2) - low) / max(high - low, MIN_RAMP), 0, 1)
    return freqs * (1 + (scale - 1) * interpolated)


def cpu(
    x: np.ndarray,
    positions: np.ndarray,
    factors: np.ndarray | None = None,
    long_factors: np.ndarray | None = None,
    *,
    base: float,
    dims: int,
    pairing: str,
    scale: float = 1.0,
    ramp: tuple[float, float] | None = None,
    magnitude: float = 1.0,
    original: int = 0,
) -> np.ndarray:
    """x [token, head, dim], positions [token], factors [dims/2] -> rotated x; elements past `dims` pass.

    `long_factors` stand in for `factors` once the last position lies past the first `original` ones
    (LongRoPE, arXiv:2402.13753).  Rotated elements are multiplied by `magnitude`.

    Angles are computed in float64 and only cos and sin are rounded to x's dtype: at position 100 000 a
    float32 angle is already wrong by 4e-3 rad.
    """
    chosen = long_factors if long_factors is not None and positions[-1] >= original else factors
    given = None if chosen is None else (chosen.tobytes(), chosen.dtype.str)
    cos, sin = _rotation(
        positions.astype(np.int64).tobytes(), given, dims, base, scale, ramp, magnitude, x.dtype.str
    )
    first, second = pair_slices(dims, pairing)
    out = np.empty(x.shape, x.dtype)
    compiled = native.takes(x, cos, sin)

    def rotate(tokens: slice) -> None:
        part, c, s = x[tokens], cos[tokens], sin[tokens]
        if compiled:  # rope.c
            native.LIBRARY.rotate(
                part, c, s, (*part.shape, c.shape[-1]), pairing == "interleaved", out[tokens]
            )
            return
        a, b = part[..., first], part[..., second]
        out[tokens, ..., dims:] = part[..., dims:]
        out[tokens, ..., first] = a * c - b * s
        out[tokens, ..., second] = a * s + b * c

    share_out(rotate, len(x), SHARE // x[0].size + 1)
    return out


@lru_cache(maxsize=8)  # all layers, Q and K, turn by the same angles
def _rotation(
    positions: bytes,
    factors: tuple[bytes, str] | None,
    dims: int,
    base: float,
    scale: float,
    ramp: tuple[float, float] | None,
    magnitude: float,
    dtype: str,
) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin [token, 1, dims/2] of every pair's angle, times `magnitude`."""
    divisors = None if factors is None else np.frombuffer(*factors)
    at = np.frombuffer(positions, np.int64).astype(np.float64)[:, None]
    angle = at * inverse_frequencies(dims, base, divisors, scale, ramp)
    cos, sin = ((turned(angle) * magnitude).astype(dtype)[:, None, :] for turned in (np.cos, np.sin))
    return cos, sin


def cuda(
    x: gpu.Array,
    positions: gpu.Array,
    factors: gpu.Array | None = None,
    long_factors: gpu.Array | None = None,
    *,
    out: gpu.Array | None = None,
    **rotation: Any,
) -> gpu.Array:
    """As `cpu`, on the GPU; positions are int32, factors float32."""
    out = gpu.empty(x.shape, x.dtype) if out is None else out
    arrays = (x, None, None, out, None, None, None, positions, None, factors, long_factors)
    _launch(arrays, x.shape, 0, **rotation)
    return out


def cuda_cached(
    q: gpu.Array,
    k: gpu.Array,
    v: gpu.Array,
    positions: gpu.Array,
    factors: gpu.Array | None = None,
    long_factors: gpu.Array | None = None,
    *,
    cache: tuple[gpu.Array, gpu.Array],
    kv_len: gpu.Array,
    out: tuple[gpu.Array, gpu.Array] | None = None,
    **rotation: Any,
) -> tuple[gpu.Array, gpu.Array]:
    """Rotate q and k and append the rotated k and v to `cache`, in one launch; gives (q_rope, k_rope).

    q [token, head, dim], k and v [token, kv_head, dim]; cache: k and v, [max_len, kv_head, dim]; kv_len:
    int32 [1] on the GPU, the keys in the cache once these tokens are in.
    """
    q_rope, k_rope = out or (gpu.empty(q.shape, q.dtype), gpu.empty(k.shape, k.dtype))
    arrays = (q, k, v, q_rope, k_rope, *cache, positions, kv_len, factors, long_factors)
    _launch(arrays, q.shape, k.shape[1], **rotation)
    return q_rope, k_rope


def cuda_append(k: gpu.Array, v: gpu.Array, *, cache: tuple[gpu.Array, gpu.Array], kv_len: gpu.Array) -> None:
    """Append k and v to `cache` as they are: layers without rotary positions; arrays as in `cuda_cached`."""
    tokens, kv_heads, dim = k.shape
    arrays = (k, k, v, None, None, *cache, None, kv_len, None, None)
    _launch(arrays, (tokens, 0, dim), kv_heads, base=1.0, dims=0, pairing="interleaved")


def _launch(
    arrays: tuple[gpu.Array | None, ...],
    shape: tuple[int, ...],
    kv_heads: int,
    *,
    base: float,
    dims: int,
    pairing: str,
    scale: float = 1.0,
    ramp: tuple[float, float] | None = None,
    magnitude: float = 1.0,
    original: int = 0,
) -> None:
    tokens, heads, dim = shape
    if dim % 2 or dims % 2 or dims > dim:
        raise ValueError(f"cannot rotate {dims} of {dim} elements: both must be even")
    if pairing not in PAIRINGS:
        raise ValueError(f"unknown RoPE pairing {pairing!r}: {' or '.join(PAIRINGS)}")
    # few tokens: a block for every four heads, to use the GPU; many: the angles serve all the heads
    spread = gpu.cdiv(heads + 2 * kv_heads, 4) if tokens < 128 else 1
    low, high = ramp or (-1.0, 0.0)  # without a ramp every pair lies past its end
    scaling = np.array((base, scale, low, 1 / max(high - low, MIN_RAMP), magnitude, original), SCALING)
    numbers = (scaling, *map(np.int32, (dims, dim, heads, kv_heads)))
    expression = f"rope<{gpu.storage(arrays[0])}, {PAIRINGS[pairing]}>"
    gpu.launch("rope.cu", expression, (tokens, spread), (dim // 2, 4), *arrays, *numbers)


def pair_slices(dims: int, pairing: str) -> tuple[slice, slice]:
    """The slices of the last axis that hold the first and the second element of every pair."""
    if pairing == "interleaved":
        return slice(0, dims, 2), slice(1, dims, 2)
    if pairing == "half-split":
        return slice(0, dims // 2), slice(dims // 2, dims)
    raise ValueError(f"unknown RoPE pairing {pairing!r}: interleaved or half-split")


def shape(x: tuple[int, ...], *_: object, **__: object) -> tuple[int, ...]:
    return x
