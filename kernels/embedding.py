"""Embedding lookup: one row of the table per token (llama.cpp `ggml_get_rows`)."""

from typing import Any

import numpy as np

from . import cuda as gpu
from .dequantize import LAYOUT, Blocks

EXPRESSIONS = {"embedding.cu": [f"embedding<{t}, {w}>" for t in gpu.STORAGE.values() for w in LAYOUT]}


def cpu(ids: np.ndarray, table: np.ndarray, *, scale: float = 1.0) -> np.ndarray:
    """ids [token] integers, table [vocab, dim] -> [token, dim] in the table's dtype.

    `scale` multiplies the rows (Gemma: sqrt(dim)).  IndexError for an id outside the vocabulary.
    """
    if ids.size and not 0 <= ids.min() <= ids.max() < len(table):
        raise IndexError(f"token ids {ids.min()} to {ids.max()} for a vocabulary of {len(table)}")
    rows = table[ids]
    return rows if scale == 1.0 else rows * table.dtype.type(scale)


def cuda(
    ids: gpu.Array,
    table: Blocks,
    *,
    scale: float = 1.0,
    dtype: Any = np.float32,
    out: gpu.Array | None = None,
) -> gpu.Array:
    """As `cpu`, on the GPU: ids int32, a table in its GGUF type, rows in `dtype` (or that of `out`).

    The row of an id outside the vocabulary is NaN: the GPU cannot raise.
    """
    vocab, dim = table.shape
    if dim % 8:
        raise ValueError(f"rows of {dim} elements: the CUDA kernel needs a multiple of 8")
    out = gpu.empty((ids.size, dim), dtype) if out is None else out
    expression = f"embedding<{gpu.storage(out)}, {table.kind}>"
    args = (ids, table.data, out, np.int32(vocab), np.int32(dim), np.float32(scale))
    gpu.launch("embedding.cu", expression, (ids.size,), (128,), *args)
    return out


def shape(ids: tuple[int, ...], table: tuple[int, ...], **_: object) -> tuple[int, ...]:
    return (ids[0], table[1])
