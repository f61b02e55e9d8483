"""What the chosen experts give, weighted and added up (the end of llama.cpp's `build_moe_ffn`)."""

import numpy as np

from . import cuda as gpu

EXPRESSIONS = {"expert_sum.cu": [f"expert_sum<{t}>" for t in gpu.STORAGE.values()]}


def cpu(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """x [token, slot, dim], weights [token, slot] -> [token, dim]."""
    return np.einsum("tsd,ts->td", x, weights)


def cuda(x: gpu.Array, weights: gpu.Array, *, out: gpu.Array | None = None) -> gpu.Array:
    """As `cpu`, on the GPU."""
    tokens, slots, dim = x.shape
    out = gpu.empty((tokens, dim), x.dtype) if out is None else out
    grid, block = (gpu.cdiv(dim, 128), tokens), (128,)
    args = (x, weights, out, np.int32(slots), np.int32(dim))
    gpu.launch("expert_sum.cu", f"expert_sum<{gpu.storage(x)}>", grid, block, *args)
    return out


def shape(x: tuple[int, ...], *_: object) -> tuple[int, ...]:
    return x[0], x[2]
