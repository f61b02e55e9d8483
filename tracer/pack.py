"""Decode steps packed: a step's arrays side by side in one block, each shaped as its row in the trace."""

import queue
from collections.abc import Sequence
from typing import Any

import numpy as np

from .errors import TraceError
from .format import TensorSpec, numpy_dtype
from .layout import Layout
from .names import Key
from .packed import Place, lay_out
from .rows import AXES, pack


class Block:
    """The bytes of a packed step (`packed.Pending`)."""

    def __init__(self, data: np.ndarray, pool: "Pool"):
        self.nbytes, self._pool = data.nbytes, pool
        self._data: np.ndarray | None = data

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        assert self._data is not None, "released"
        return self._data

    def release(self) -> None:
        """Let another step have the memory."""
        data, self._data = self._data, None
        if data is not None:
            self._pool.give_back(data)


class Pool:
    """Memory for blocks, used again: new memory has to be asked for, page by page.

    One thread takes it.  Others give it back, through a queue: an interrupt from the keyboard could leave a
    lock closed.
    """

    def __init__(self, size: int):
        self._size, self._out = size, 0
        self._spare: list[np.ndarray] = []
        self._back: queue.SimpleQueue[np.ndarray] = queue.SimpleQueue()
        self.give_back = self._back.put

    def take(self) -> np.ndarray:
        """uint8 [size], with anything in it."""
        while not self._back.empty():
            self._collect()
        self._out += 1
        return self._spare.pop() if self._spare else np.empty(self._size, np.uint8)

    def wait_for_all_but(self, nbytes: int) -> None:
        """Wait until no more than `nbytes` are in use; two blocks always may be."""
        while self._out > max(nbytes // self._size, 2):
            self._collect()

    def _collect(self) -> None:
        self._spare.append(self._back.get())
        self._out -= 1


class Form:
    """How the arrays of decode steps that record the tensors `keys`, in this order, are packed."""

    def __init__(self, keys: Sequence[Key], specs: Sequence[TensorSpec], layout: Layout):
        self.keys, self._layout = keys, layout
        self.places, size = lay_out(
            {spec.key: (spec.shape(1, layout.n_tokens), numpy_dtype(spec.dtype)) for spec in specs}
        )
        self.pool = Pool(size)
        kinds = {(spec.axes, *spec.sizes.items()): spec for spec in specs}  # all layers have the same
        numbers = {kind: number for number, kind in enumerate(kinds)}
        self._kinds = list(kinds.values())
        self._kind = np.array([numbers[(spec.axes, *spec.sizes.items())] for spec in specs], np.intp)
        self._spots = np.array([_spot(place) for place in self.places.values()], np.int64)

    def pack(self, step: int, arrays: list[np.ndarray]) -> Block:
        """The block of a step; TraceError where an array has not the shape that was announced."""
        shapes = [self._layout.shape(spec, step) for spec in self._kinds]
        sizes = np.array([_padded(shape) for shape in shapes], np.int64)
        data = self.pool.take()
        block = Block(data, self.pool)
        try:
            for number in pack(arrays, self._spots, sizes[self._kind], data):
                self._lay(data, self.keys[number], arrays[number], shapes[self._kind[number]])
        except BaseException:
            block.release()
            raise
        return block

    def _lay(self, block: np.ndarray, key: Key, array: np.ndarray, shape: tuple[int, ...]) -> None:
        """Put one array into its place, converted and padded."""
        if array.shape != shape:
            raise misshapen(key, array.shape, shape)
        place = self.places[key]
        room = block[place.span].view(place.dtype).reshape(place.shape)
        if shape != place.shape:
            block[place.span] = _fill(place.dtype)
        with np.errstate(over="ignore"):  # what float16 cannot hold becomes infinite there
            room[tuple(map(slice, shape))] = array


def _spot(place: Place) -> tuple[int, ...]:
    """A place as `rows.pack` takes it; an array with more axes than that can is of no kind that it knows."""
    axes = len(place.shape)
    kind = ord(place.dtype.char) if place.dtype.isbuiltin == 1 and axes <= AXES else 0
    return place.offset, kind, _fill(place.dtype), axes, *_padded(place.shape)


def _padded(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape, *[1] * (AXES - len(shape)))[:AXES]


def _fill(dtype: np.dtype) -> int:
    """The byte that fills rows which are shorter than the longest: NaN, 0 in integers."""
    return 0 if dtype.kind in "iu" else 0xFF


def misshapen(key: Key, shape: tuple[int, ...], expected: tuple[int, ...]) -> TraceError:
    return TraceError(f"{key}: recorded as {shape}, announced as {expected}")
