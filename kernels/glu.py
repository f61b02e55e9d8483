"""Gated linear unit: activation(gate) * up (Shazeer 2020, arXiv:2002.05202).

llama.cpp `ggml_swiglu_split` and `ggml_geglu_split`, whose GELU is looked up in a table of 16-bit numbers.
"""

import numpy as np

from . import cuda as gpu
from . import native
from .gelu import cpu as gelu
from .shares import SHARE, share_out


def silu(x: np.ndarray) -> np.ndarray:
    """x * sigmoid(x) = x / (1 + exp(-x)); where exp overflows, the quotient is 0 as it should be."""
    with np.errstate(over="ignore"):
        e = np.exp(-x)
    e += 1
    return np.divide(x, e, out=e)


ACTIVATIONS = {"silu": silu, "gelu_tanh": gelu}
FUNCTORS = {"silu": "Silu", "gelu_tanh": "Gelu"}  # their names in glu.cu
EXPRESSIONS = {"glu.cu": [f"glu<{t}, {f}>" for t in gpu.STORAGE.values() for f in FUNCTORS.values()]}


def cpu(gate: np.ndarray, up: np.ndarray, *, activation: str = "silu") -> np.ndarray:
    """gate, up [token, ffn] -> [token, ffn]."""
    out = np.empty(gate.shape, gate.dtype)
    compiled = activation == "silu" and native.takes(gate, up)

    def activate(tokens: slice) -> None:
        if compiled:  # glu.c
            native.LIBRARY.silu_glu(gate[tokens], up[tokens], out[tokens])
        else:
            np.multiply(ACTIVATIONS[activation](gate[tokens]), up[tokens], out=out[tokens])

    share_out(activate, len(gate), SHARE // gate.shape[-1] + 1)
    return out


def cuda(
    gate: gpu.Array, up: gpu.Array, *, activation: str = "silu", out: gpu.Array | None = None
) -> gpu.Array:
    """As `cpu`, on the GPU."""
    out = gpu.empty(gate.shape, gate.dtype) if out is None else out
    expression = f"glu<{gpu.storage(gate)}, {FUNCTORS[activation]}>"
    grid, block = (gpu.cdiv(gate.size, 4 * 256),), (256,)
    gpu.launch("glu.cu", expression, grid, block, gate, up, out, np.int64(gate.size))
    return out


def shape(gate: tuple[int, ...], *_: object, **__: object) -> tuple[int, ...]:
    return gate
