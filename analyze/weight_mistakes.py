"""The mistakes that engines make when they load a weight, each as the weight that it would give.

Block layouts: ggml's `ggml-common.h`; the permutation of Q and K: llama.cpp's `conversion/llama.py`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from gguf.constants import GGML_QUANT_SIZES
from gguf.constants import GGMLQuantizationType as Kind
from gguf.quants import dequantize

from ..tracer.gguf import Model

# type -> (first byte of the packed nibbles in a block, their number, bytes that are unpacked together)
_NIBBLES = {
    Kind.Q4_0: (2, 16, 16),
    Kind.Q4_1: (4, 16, 16),
    Kind.Q5_0: (6, 16, 16),
    Kind.Q5_1: (8, 16, 16),
    Kind.IQ4_NL: (2, 16, 16),
    Kind.Q4_K: (16, 128, 32),
    Kind.Q5_K: (48, 128, 32),
}
_SCALES = dict.fromkeys((*_NIBBLES, Kind.Q8_0), 0) | {Kind.Q6_K: 208, Kind.Q2_K: 80, Kind.Q3_K: 108}
_MINS = {Kind.Q4_1: 2, Kind.Q5_1: 2, Kind.Q4_K: 2, Kind.Q5_K: 2, Kind.Q2_K: 82}
_ZERO_POINTS = {Kind.Q4_0: 8, Kind.Q5_0: 16}  # what is subtracted from the packed integers
_ONE = np.frombuffer(np.float16(1).tobytes(), np.uint8)


@dataclass(frozen=True)
class Mistake:
    """What may have happened: `kind` is stable, `make` gives the weight that would come of it."""

    kind: str
    message: str
    make: Callable[[], np.ndarray]


def mistakes(model: Model, tensor: str, weight: np.ndarray) -> Iterator[Mistake]:
    """Every mistake that is possible with this tensor; `weight` is the tensor as it should be."""
    if weight.ndim == 2:
        yield Mistake("transposed", "is transposed: [in, out] instead of [out, in]", lambda: weight.T)
    if weight.ndim == 1:
        yield Mistake("plus_one", "has 1 added, as norms of Gemma have already", lambda: weight + 1)
        yield Mistake("minus_one", "has 1 subtracted", lambda: weight - 1)
    yield from _head_orders(model, tensor, weight)
    yield from _misread_blocks(model, tensor)


def _head_orders(model: Model, tensor: str, weight: np.ndarray) -> Iterator[Mistake]:
    """Rows of Q and K inside each head: pairs of the rotation as neighbours, or as two halves."""
    role = tensor.removesuffix(".weight").rsplit(".", 1)[-1]
    heads = model.hparam("attention.head_count", None)
    if role == "attn_k":
        heads = model.hparam("attention.head_count_kv", heads)
    if role not in ("attn_q", "attn_k") or not isinstance(heads, int) or len(weight) % (2 * heads):
        return
    inner = weight.reshape(heads, -1, *weight.shape[1:])

    def halves() -> np.ndarray:
        return inner.reshape(heads, -1, 2, *weight.shape[1:]).swapaxes(1, 2)

    def neighbours() -> np.ndarray:
        return inner.reshape(heads, 2, -1, *weight.shape[1:]).swapaxes(1, 2)

    yield Mistake(
        "heads_half_split",
        "has the rows of each head as two halves (transformers' order): rotate half-split pairs with it, "
        "or permute it as the GGUF is",
        halves,
    )
    yield Mistake(
        "heads_interleaved",
        "has the rows of each head permuted to neighbouring pairs once more than the GGUF: "
        "leave them as the file has them",
        neighbours,
    )


def _misread_blocks(model: Model, tensor: str) -> Iterator[Mistake]:
    kind = Kind[model.tensor_type(tensor)]
    if kind not in _SCALES:
        return

    def decode(change: Callable[[np.ndarray], None]) -> Callable[[], np.ndarray]:
        return lambda: _dequantised(model, tensor, kind, change)

    if kind in _NIBBLES:
        first, count, group = _NIBBLES[kind]
        nibbles = slice(first, first + count)
        yield Mistake(
            "nibbles_sequential",
            f"has low and high nibbles as neighbours: {group} bytes hold their low ones first, then the high",
            decode(lambda blocks: _as_neighbours(blocks[:, nibbles], group)),
        )
        yield Mistake(
            "nibbles_swapped", "has low and high nibbles exchanged", decode(lambda b: _swap(b[:, nibbles]))
        )
    scale, low = _SCALES[kind], _MINS.get(kind)
    yield Mistake("no_scale", "lacks the block's scale", decode(lambda blocks: _set(blocks, scale, _ONE)))
    if low is not None:
        yield Mistake("no_min", "lacks the block's minimum", decode(lambda b: _set(b, low, np.zeros(2))))
    if kind in _ZERO_POINTS:
        offset = _ZERO_POINTS[kind]
        yield Mistake(
            "no_zero_point",
            f"lacks the zero point: the packed integers minus {offset} count",
            lambda: model.weight(tensor) + offset * _block_scales(model, tensor, kind, scale),
        )


def _dequantised(model: Model, tensor: str, kind: Kind, change: Callable[[np.ndarray], None]) -> np.ndarray:
    """The tensor from blocks that `change` has altered."""
    size = GGML_QUANT_SIZES[kind][1]
    blocks = np.array(model.raw(tensor)).reshape(-1, size)
    change(blocks)
    return dequantize(blocks, kind).reshape(model.shape(tensor))


def _as_neighbours(packed: np.ndarray, group: int) -> None:
    """Pack nibbles such that reading them properly gives what reading them as neighbours gave."""
    pairs = packed.reshape(len(packed), -1, group)
    read = np.stack((pairs & 15, pairs >> 4), axis=-1).reshape(*pairs.shape[:2], 2 * group)
    packed[:] = (read[..., :group] | read[..., group:] << 4).reshape(packed.shape)


def _swap(packed: np.ndarray) -> None:
    packed[:] = packed >> 4 | packed << 4


def _set(blocks: np.ndarray, first: int, value: np.ndarray) -> None:
    blocks[:, first : first + 2] = value


def _block_scales(model: Model, tensor: str, kind: Kind, first: int) -> np.ndarray:
    """The scale of each element's block, shaped as the tensor."""
    elements, size = GGML_QUANT_SIZES[kind]
    raw = np.ascontiguousarray(model.raw(tensor).reshape(-1, size)[:, first : first + 2])
    scales = raw.view(np.float16).astype(np.float32)
    return np.repeat(scales, elements, axis=1).reshape(model.shape(tensor))
