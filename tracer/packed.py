"""A step's tensors in one block of memory, as an engine with fixed buffers hands them over."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np

from .names import Key


@runtime_checkable
class Pending(Protocol):
    """Bytes on their way to the host: `np.asarray` waits, `release` (once or more) gives them back."""

    nbytes: int

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray: ...
    def release(self) -> None: ...


def let_go(array: np.ndarray | Pending) -> None:
    """Give back the buffer of what is not needed any more."""
    if not isinstance(array, np.ndarray):  # quicker than asking whether it is Pending
        array.release()


@dataclass(frozen=True)
class Place:
    """Where a tensor lies in a block: byte offset, shape (as its row in the trace) and dtype."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype

    @cached_property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @cached_property
    def span(self) -> slice:
        """Its bytes in the block."""
        return slice(self.offset, self.offset + self.nbytes)


Places = Mapping[Key, Place]

ALIGNMENT = 256  # bytes: what cudaMalloc gives, and enough for any vector load


def lay_out(shapes: Mapping[Key, tuple[tuple[int, ...], np.dtype]]) -> tuple[Places, int]:
    """Places for arrays of these shapes and dtypes side by side, and the size of the block in bytes."""
    places, offset = {}, 0
    for key, (shape, dtype) in shapes.items():
        place = Place(offset, shape, np.dtype(dtype))
        places[key] = place
        offset += -(-place.nbytes // ALIGNMENT) * ALIGNMENT
    return places, offset


def unpack(block: np.ndarray, places: Places) -> Iterator[tuple[Key, np.ndarray]]:
    """The tensors of a block: uint8 [bytes] gives [...], uint8 [step, bytes] gives [step, ...]."""
    for key, place in places.items():
        part = block[..., place.span]
        yield key, part.view(place.dtype).reshape(*block.shape[:-1], *place.shape)


def convert(block: np.ndarray, places: Places, others: Places, size: int) -> np.ndarray:
    """A block of `size` bytes with the tensors that have `others` as their places, of the types there."""
    made, given = np.empty(size, np.uint8), dict(unpack(block, places))
    with np.errstate(over="ignore"):  # what float16 cannot hold becomes infinite there
        for key, room in unpack(made, others):
            room[...] = given[key]
    return made


@dataclass(frozen=True)
class PackedStep:
    """A decode step and its block, itself `Pending`."""

    index: int
    block: Pending
    places: Places

    @property
    def nbytes(self) -> int:
        return self.block.nbytes

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.block)

    def release(self) -> None:
        self.block.release()
