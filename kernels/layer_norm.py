"""Layer norm over the last axis: (x - mean) / sqrt(variance + eps) * gain + bias (arXiv:1607.06450).

llama.cpp `ggml_norm` followed by `ggml_mul` and `ggml_add`.
"""

import numpy as np

from . import cuda as gpu

EXPRESSIONS = {"layer_norm.cu": [f"layer_norm<{t}>" for t in gpu.STORAGE.values()]}


def cpu(x: np.ndarray, gain: np.ndarray, bias: np.ndarray, *, eps: float) -> np.ndarray:
    """x [..., dim], gain and bias [dim] -> [..., dim].  `eps` sits inside the root, in units of x^2."""
    centred = x - x.mean(-1, keepdims=True)
    variance = np.einsum("...d,...d->...", centred, centred)[..., None] / x.dtype.type(x.shape[-1])
    return centred / np.sqrt(variance + x.dtype.type(eps)) * gain + bias


def cuda(
    x: gpu.Array, gain: gpu.Array, bias: gpu.Array, *, eps: float, out: gpu.Array | None = None
) -> gpu.Array:
    """As `cpu`, on the GPU; gain and bias are float32 whatever x is."""
    out = gpu.empty(x.shape, x.dtype) if out is None else out
    dim = x.shape[-1]
    threads = min(256, 32 * gpu.cdiv(dim, 32))
    args = (x, gain, bias, out, np.int32(dim), np.float32(eps))
    grid, shared = (x.size // dim,), threads // 32 * 4
    gpu.launch("layer_norm.cu", f"layer_norm<{gpu.storage(x)}>", grid, (threads,), *args, shared=shared)
    return out


def shape(x: tuple[int, ...], *_: object, **__: object) -> tuple[int, ...]:
    return x
