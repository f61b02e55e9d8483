"""Matrix product with a weight stored [out, in] as in GGUF and PyTorch (llama.cpp `ggml_mul_mat`)."""

import math
from collections.abc import Sequence

import numpy as np

from . import cuda as gpu
from . import dequantize, native
from .dequantize import Blocks
from .shares import share_out

EXPRESSIONS = {
    "linear.cu": [
        *(f"linear<{t}, {w}>" for t in gpu.STORAGE.values() for w in dequantize.LAYOUT),
        *(f"add_bias<{t}>" for t in gpu.STORAGE.values()),
    ]
}
ROWS = 4  # of a weight in a block of threads, one a warp
MATRICES = 3  # that one launch can multiply
COLUMNS, LEAST = 96, 1 << 23  # of the result that a thread takes at a time, and the least products in them
COMPILED = frozenset(("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"))  # types of linear.c


def reads_blocks(kind: str) -> bool:
    """Whether `cpu` multiplies one float32 token with a weight of this GGUF type as it is stored.

    A token's time is that of reading the weights, and stored they have a fifth of the bytes.
    """
    return native.LIBRARY is not None and kind in COMPILED


def cpu(
    x: np.ndarray, weight: np.ndarray | Blocks, bias: np.ndarray | None = None, *, heads: int | None = None
) -> np.ndarray:
    """x [token, ...] (flattened to [token, in]), weight [out, in], bias [out] -> [token, out].

    With `heads` the result is viewed as [token, heads, out / heads].
    """
    tokens = x.shape[0]
    x = x.reshape(tokens, -1)
    y = _multiply_blocks(x, weight) if isinstance(weight, Blocks) else _multiply(x, weight)
    if bias is not None:
        y += bias
    return y if heads is None else y.reshape(tokens, heads, -1)


def _multiply(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    y = np.empty((len(x), len(weight)), np.result_type(x, weight))
    share = COLUMNS * max(1, LEAST // (COLUMNS * x.size))
    share_out(lambda rows: np.matmul(x, weight[rows].T, out=y[:, rows]), len(weight), share)
    return y


def _multiply_blocks(x: np.ndarray, weight: Blocks) -> np.ndarray:
    out = np.empty((1, weight.shape[0]), np.float32)
    native.LIBRARY.multiply(weight.kind, weight.data, np.ascontiguousarray(x), out)
    return out


def cuda(
    x: gpu.Array,
    weight: Blocks,
    bias: gpu.Array | None = None,
    *,
    heads: int | None = None,
    out: gpu.Array | None = None,
) -> gpu.Array:
    """As `cpu`, on the GPU, with a weight in its GGUF type and a float32 bias.

    One token multiplies the weight as it is; several multiply its values, in x's type, through cuBLAS.
    """
    (out,) = cuda_many(x, [weight], [bias], out=None if out is None else [out])
    return out if heads is None else out.reshape(x.shape[0], heads, -1)


def cuda_many(
    x: gpu.Array,
    weights: Sequence[Blocks],
    biases: Sequence[gpu.Array | None],
    *,
    out: Sequence[gpu.Array] | None = None,
) -> Sequence[gpu.Array]:
    """The products of x with up to three weights; for one token a single launch where their types agree."""
    tokens = x.shape[0]
    x = x.reshape(tokens, -1)
    out = [gpu.empty((tokens, w.shape[0]), x.dtype) for w in weights] if out is None else out
    if tokens > 1 or x.size % 8:
        for weight, bias, y in zip(weights, biases, out, strict=True):
            _product(x, weight, bias, y.reshape(tokens, -1))
        return out
    for kind in dict.fromkeys(weight.kind for weight in weights):
        matrices: list[object] = []
        rows = 0
        for weight, bias, y in zip(weights, biases, out, strict=True):
            if weight.kind == kind:
                matrices += [weight.data, bias, y, np.int32(weight.shape[0])]
                rows += weight.shape[0]
        matrices += [None, None, None, np.int32(0)] * (MATRICES - len(matrices) // 4)
        expression = f"linear<{gpu.storage(x)}, {kind}>"
        grid, block = (gpu.cdiv(rows, ROWS),), (32 * ROWS,)
        gpu.launch("linear.cu", expression, grid, block, x, np.int32(x.size), *matrices)
    return out


def _product(x: gpu.Array, weight: Blocks, bias: gpu.Array | None, out: gpu.Array) -> None:
    if dequantize.PLAIN[x.dtype.name] == weight.kind:
        values = weight.data.view(x.dtype)
    else:
        values = dequantize.cuda(weight, dtype=x.dtype)
    gpu.matmul(x, values, out)
    if bias is not None:
        grid = (gpu.cdiv(out.size, 256),)
        args = (out, bias, np.int64(out.size), np.int32(out.shape[1]))
        gpu.launch("linear.cu", f"add_bias<{gpu.storage(out)}>", grid, (256,), *args)


def shape(
    x: tuple[int, ...], weight: tuple[int, ...], *_: object, heads: int | None = None
) -> tuple[int, ...]:
    return (x[0], weight[0]) if heads is None else (x[0], heads, weight[0] // heads)


def flops(x: tuple[int, ...], weight: tuple[int, ...], *_: object, **__: object) -> int:
    return 2 * x[0] * math.prod(weight)
