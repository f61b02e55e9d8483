"""Root-mean-square norm over the last axis: x / sqrt(mean(x^2) + eps) * gain (Zhang & Sennrich 2019).

llama.cpp `ggml_rms_norm` followed by `ggml_mul`.
"""

import numpy as np

from . import cuda as gpu
from . import native
from .shares import SHARE, share_out

EXPRESSIONS = {"rms_norm.cu": [f"rms_norm<{t}, {n}>" for t in gpu.STORAGE.values() for n in (1, 4)]}


def cpu(x: np.ndarray, gain: np.ndarray, *, eps: float) -> np.ndarray:
    """x [..., dim], gain [dim] -> [..., dim].  `eps` sits inside the root, in units of x^2.

    A gain as long as several of x's last axes norms these together (Q and K over all heads).
    """
    rows = x.reshape(-1, gain.size)
    out = np.empty(rows.shape, x.dtype)
    compiled = native.takes(rows, gain)

    def norm(span: slice) -> None:
        part = rows[span]
        if compiled:  # rms_norm.c
            native.LIBRARY.rms_norm(part, gain, eps, out[span])
            return
        mean_square = np.einsum("nd,nd->n", part, part)[:, None] / x.dtype.type(gain.size)
        np.multiply(part / np.sqrt(mean_square + x.dtype.type(eps)), gain, out=out[span])

    share_out(norm, len(rows), SHARE // gain.size + 1)
    return out.reshape(x.shape)


def cuda(x: gpu.Array, gain: gpu.Array, *, eps: float, out: gpu.Array | None = None) -> gpu.Array:
    """As `cpu`, on the GPU; gain is float32 whatever x is."""
    out = gpu.empty(x.shape, x.dtype) if out is None else out
    _launch(x, None, gain, None, out, eps)
    return out


def cuda_add(
    x: gpu.Array,
    y: gpu.Array,
    gain: gpu.Array,
    *,
    eps: float,
    out: tuple[gpu.Array, gpu.Array] | None = None,
) -> tuple[gpu.Array, gpu.Array]:
    """x + y and the norm of that sum, in one launch: (sum, norm), both of x's shape."""
    total, normed = out or (gpu.empty(x.shape, x.dtype), gpu.empty(x.shape, x.dtype))
    _launch(x, y, gain, total, normed, eps)
    return total, normed


def _launch(
    x: gpu.Array,
    addend: gpu.Array | None,
    gain: gpu.Array,
    total: gpu.Array | None,
    out: gpu.Array,
    eps: float,
) -> None:
    dim = gain.size
    width = 4 if dim % 4 == 0 else 1
    threads = min(256, 32 * gpu.cdiv(dim, 32 * width))
    expression = f"rms_norm<{gpu.storage(x)}, {width}>"
    args = (x, addend, gain, total, out, np.int32(dim), np.float32(eps))
    gpu.launch("rms_norm.cu", expression, (x.size // dim,), (threads,), *args, shared=threads // 32 * 4)


def shape(x: tuple[int, ...], *_: object, **__: object) -> tuple[int, ...]:
    return x
