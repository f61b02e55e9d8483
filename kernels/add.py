"""Residual addition (llama.cpp `ggml_add`)."""

import numpy as np

from . import cuda as gpu

EXPRESSIONS = {"add.cu": [f"add<{t}>" for t in gpu.STORAGE.values()]}


def cpu(x: np.ndarray, y: np.ndarray, *, scale: float = 1.0) -> np.ndarray:
    """x, y of one shape -> x + scale * y (Granite scales what a block adds to the residual stream)."""
    return x + (y if scale == 1.0 else y * y.dtype.type(scale))


def cuda(x: gpu.Array, y: gpu.Array, *, scale: float = 1.0, out: gpu.Array | None = None) -> gpu.Array:
    """As `cpu`, on the GPU."""
    out = gpu.empty(x.shape, x.dtype) if out is None else out
    grid, block = (gpu.cdiv(x.size, 4 * 256),), (256,)
    args = (x, y, out, np.int64(x.size), np.float32(scale))
    gpu.launch("add.cu", f"add<{gpu.storage(x)}>", grid, block, *args)
    return out


def shape(x: tuple[int, ...], *_: object, **__: object) -> tuple[int, ...]:
    return x
