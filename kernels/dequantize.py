"""Weights as GGUF stores them, and their values (llama.cpp `ggml_get_type_traits()->to_float`)."""

from typing import Any, NamedTuple

import numpy as np

from . import cuda as gpu

# weights and bytes of a block (ggml-common.h); the types that the CUDA kernels read as they are
LAYOUT = {
    "F32": (1, 4),
    "F16": (1, 2),
    "BF16": (1, 2),
    "Q8_0": (32, 34),
    "Q4_0": (32, 18),
    "Q4_1": (32, 20),
    "Q5_0": (32, 22),
    "Q5_1": (32, 24),
    "Q4_K": (256, 144),
    "Q5_K": (256, 176),
    "Q6_K": (256, 210),
}
PLAIN = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}  # dtype -> the type that needs no decoding
EXPRESSIONS = {"dequantize.cu": [f"dequantize<{t}, {w}>" for t in gpu.STORAGE.values() for w in LAYOUT]}


class Blocks(NamedTuple):
    """A matrix [rows, columns], or one for each expert, in a GGUF type; on host or GPU.

    `data` is uint8 [..., rows, bytes of a row].
    """

    data: Any
    kind: str

    @property
    def shape(self) -> tuple[int, ...]:
        weights, size = LAYOUT[self.kind]
        return *self.data.shape[:-1], self.data.shape[-1] // size * weights


def cpu(blocks: Blocks) -> np.ndarray:
    """The weights as float32 [rows, columns]."""
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    return dequantize(blocks.data, GGMLQuantizationType[blocks.kind]).astype(np.float32, copy=False)


def cuda(blocks: Blocks, *, dtype: Any = np.float32, out: gpu.Array | None = None) -> gpu.Array:
    """As `cpu`, on the GPU, rounded to `dtype` (or that of `out`); columns must be a multiple of eight."""
    rows, columns = blocks.shape
    if columns % 8:
        raise ValueError(f"rows of {columns} weights: the CUDA kernels need a multiple of 8")
    out = gpu.empty((rows, columns), dtype) if out is None else out
    octets = rows * columns // 8
    expression = f"dequantize<{gpu.storage(out)}, {blocks.kind}>"
    grid, block = (gpu.cdiv(octets, 256),), (256,)
    gpu.launch("dequantize.cu", expression, grid, block, blocks.data, out, np.int64(octets))
    return out
