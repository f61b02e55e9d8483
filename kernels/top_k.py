"""The largest entries of each row: which experts a token goes to (llama.cpp `ggml_argsort_top_k`)."""

import numpy as np

from . import cuda as gpu

EXPRESSIONS = {"top_k.cu": [f"top_k<{t}>" for t in gpu.STORAGE.values()]}


def cpu(x: np.ndarray, *, k: int) -> np.ndarray:
    """x [token, expert] -> ids int32 [token, k], largest first; of equal entries the first is taken."""
    return np.argsort(-x, axis=-1, kind="stable")[:, :k].astype(np.int32)


def cuda(x: gpu.Array, *, k: int, out: gpu.Array | None = None) -> gpu.Array:
    """As `cpu`, on the GPU."""
    rows, columns = x.shape
    out = gpu.empty((rows, k), np.int32) if out is None else out
    args = (x, out, np.int32(rows), np.int32(columns), np.int32(k))
    gpu.launch("top_k.cu", f"top_k<{gpu.storage(x)}>", (gpu.cdiv(rows, 32),), (32,), *args)
    return out


def shape(x: tuple[int, ...], *, k: int) -> tuple[int, ...]:
    return x[0], k
