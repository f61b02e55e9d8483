"""Scaling and soft capping of logits: Granite divides them, Gemma 2 caps them (arXiv:2408.00118, section 2).

llama.cpp `ggml_scale`, and `ggml_tanh` between two of these.
"""

import numpy as np

from . import cuda as gpu

EXPRESSIONS = {"scale.cu": [f"scale<{t}>" for t in gpu.STORAGE.values()]}


def cpu(x: np.ndarray, *, factor: float = 1.0, softcap: float | None = None) -> np.ndarray:
    """x of any shape -> softcap * tanh(factor * x / softcap), or factor * x where there is no cap."""
    kind = x.dtype.type
    scaled = x * kind(factor)
    return scaled if softcap is None else np.tanh(scaled / kind(softcap)) * kind(softcap)


def cuda(
    x: gpu.Array, *, factor: float = 1.0, softcap: float | None = None, out: gpu.Array | None = None
) -> gpu.Array:
    """As `cpu`, on the GPU."""
    out = gpu.empty(x.shape, x.dtype) if out is None else out
    args = (x, out, np.int64(x.size), np.float32(factor), np.float32(softcap or 0.0))
    gpu.launch("scale.cu", f"scale<{gpu.storage(x)}>", (gpu.cdiv(x.size, 256),), (256,), *args)
    return out


def shape(x: tuple[int, ...], **_: object) -> tuple[int, ...]:
    return x
