"""Decode steps gathered in memory, so that what lies side by side in the file is written at once."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from .layout import Layout
from .names import Key


class Stage:
    """What is recorded of some decode steps: the arrays as the engine gave them, not copied."""

    def __init__(self, layout: Layout):
        self.nbytes = 0
        self._layout = layout
        self._kept: dict[Key, tuple[list[int], list[np.ndarray]]] = {}

    def keep(self, step: int, key: Key, array: np.ndarray) -> None:
        if key not in self._kept:
            self._kept[key] = [], []
        steps, arrays = self._kept[key]
        steps.append(step)
        arrays.append(array)
        self.nbytes += array.nbytes

    def runs(self) -> Iterator[tuple[Key, list[int], list[np.ndarray]]]:
        """The tensors in runs of steps whose rows are neighbours in the file: the steps, and their arrays."""
        last: list[int] = []
        for key, (steps, arrays) in self._kept.items():
            if steps != last:  # most tensors have the same steps as the one before
                last, bounds = steps, neighbours(self._layout, steps)
            for first, end in pairwise(bounds):
                yield key, steps[first:end], arrays[first:end]


def neighbours(layout: Layout, steps: list[int]) -> list[int]:
    """Where runs of recorded decode steps begin and end whose rows follow each other."""
    rows = [(layout.joined_row(step), layout.decode_row(step)) for step in steps]
    breaks = (np.diff(rows, axis=0) != 1).any(1) if len(rows) > 1 else np.zeros(0, bool)
    return [0, *(np.flatnonzero(breaks) + 1).tolist(), len(steps)]


def as_stored(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """A contiguous array of `dtype`; what float16 cannot hold becomes infinite there."""
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(array, dtype)


def padded(arrays: list[np.ndarray], shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """The arrays as rows [array, *shape] of `dtype`; NaN (0 in integers) fills those that are shorter."""
    rows = np.full((len(arrays), *shape), np.nan if dtype.kind not in "iu" else 0, dtype)
    with np.errstate(over="ignore"):
        for row, array in zip(rows, arrays):
            row[tuple(map(slice, array.shape))] = array
    return rows
