"""Products of each token with the matrices of the experts chosen for it.

llama.cpp `ggml_mul_mat_id`, followed by `ggml_add_id` where there is a bias.
"""

import numpy as np

from . import cuda as gpu
from .dequantize import LAYOUT, Blocks

EXPRESSIONS = {"expert_linear.cu": [f"expert_linear<{t}, {w}>" for t in gpu.STORAGE.values() for w in LAYOUT]}
ROWS = 4  # of a matrix in a block of threads, one a warp


def cpu(x: np.ndarray, ids: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """x [token, in] or [token, slot, in], ids [token, slot], weight [expert, out, in], bias [expert, out]
    -> [token, slot, out]."""
    ids = ids.astype(np.intp)  # a replay reads every tensor as floating-point numbers
    inputs = np.broadcast_to(x if x.ndim == 3 else x[:, None], (*ids.shape, x.shape[-1]))
    out = np.empty((*ids.shape, weight.shape[1]), x.dtype)
    for expert in np.unique(ids):
        chosen = ids == expert
        out[chosen] = inputs[chosen] @ weight[expert].T
        if bias is not None:
            out[chosen] += bias[expert]
    return out


def cuda(
    x: gpu.Array,
    ids: gpu.Array,
    weight: Blocks,
    bias: Blocks | None = None,
    *,
    out: gpu.Array | None = None,
) -> gpu.Array:
    """As `cpu`, on the GPU: weight in its GGUF type, bias in F32."""
    tokens, slots = ids.shape
    columns, rows = x.shape[-1], weight.shape[1]
    if columns % 8:
        raise ValueError(f"rows of {columns} weights: the CUDA kernels need a multiple of 8")
    if bias is not None and bias.kind != "F32":
        raise ValueError(f"a bias of experts in {bias.kind}: the CUDA kernel reads F32")
    out = gpu.empty((tokens, slots, rows), x.dtype) if out is None else out
    width = slots if x.ndim == 3 else 1
    numbers = map(np.int32, (columns, rows, slots, width))
    arrays = (x, ids, weight.data, None if bias is None else bias.data, out)
    grid, block = (gpu.cdiv(rows, ROWS), tokens * slots), (32 * ROWS,)
    expression = f"expert_linear<{gpu.storage(x)}, {weight.kind}>"
    gpu.launch("expert_linear.cu", expression, grid, block, *arrays, *numbers)
    return out


def shape(x: tuple[int, ...], ids: tuple[int, ...], weight: tuple[int, ...], *_: object) -> tuple[int, ...]:
    return *ids, weight[1]


def flops(x: tuple[int, ...], ids: tuple[int, ...], weight: tuple[int, ...], *_: object) -> int:
    return 2 * ids[0] * ids[1] * weight[1] * weight[2]
