"""Gaussian error linear unit, tanh approximation (Hendrycks & Gimpel 2016, arXiv:1606.08415).

0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))): GPT-2's and Gemma's, transformers' `gelu_pytorch_tanh` and
`gelu_new`, llama.cpp `ggml_gelu`, whose CPU backend looks it up in a table of 16-bit numbers.
"""

import numpy as np

from . import cuda as gpu

EXPRESSIONS = {"gelu.cu": [f"gelu_forward<{t}>" for t in gpu.STORAGE.values()]}


def cpu(x: np.ndarray) -> np.ndarray:
    """x of any shape -> the same shape."""
    kind = x.dtype.type
    inner = kind((2 / np.pi) ** 0.5) * (x + kind(0.044715) * x * x * x)
    return kind(0.5) * x * (1 + np.tanh(inner))


def cuda(x: gpu.Array, *, out: gpu.Array | None = None) -> gpu.Array:
    """As `cpu`, on the GPU."""
    out = gpu.empty(x.shape, x.dtype) if out is None else out
    grid, block = (gpu.cdiv(x.size, 4 * 256),), (256,)
    gpu.launch("gelu.cu", f"gelu_forward<{gpu.storage(x)}>", grid, block, x, out, np.int64(x.size))
    return out


def shape(x: tuple[int, ...]) -> tuple[int, ...]:
    return x
