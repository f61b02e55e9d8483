"""gpt-oss's gated linear unit: g * sigmoid(alpha g) * (u + 1), g = min(gate, limit), u = up within limit.

The model card of gpt-oss (arXiv:2508.10925) calls it unconventional; llama.cpp `ggml_swiglu_oai`.
"""

import numpy as np

from . import cuda as gpu

EXPRESSIONS = {"clamped_glu.cu": [f"clamped_glu<{t}>" for t in gpu.STORAGE.values()]}


def cpu(gate: np.ndarray, up: np.ndarray, *, alpha: float, limit: float) -> np.ndarray:
    """gate, up of one shape -> the same shape."""
    kind = gate.dtype.type
    g, u = np.minimum(gate, kind(limit)), np.clip(up, kind(-limit), kind(limit))
    with np.errstate(over="ignore"):  # where exp overflows, the quotient is 0 as it should be
        return g / (1 + np.exp(-kind(alpha) * g)) * (u + 1)


def cuda(
    gate: gpu.Array, up: gpu.Array, *, alpha: float, limit: float, out: gpu.Array | None = None
) -> gpu.Array:
    """As `cpu`, on the GPU."""
    out = gpu.empty(gate.shape, gate.dtype) if out is None else out
    args = (gate, up, out, np.int64(gate.size), np.float32(alpha), np.float32(limit))
    expression = f"clamped_glu<{gpu.storage(gate)}>"
    gpu.launch("clamped_glu.cu", expression, (gpu.cdiv(gate.size, 256),), (256,), *args)
    return out


def shape(gate: tuple[int, ...], *_: object, **__: object) -> tuple[int, ...]:
    return gate
