"""Decode steps gathered in memory, so that what lies side by side in the file is written at once."""

from collections.abc import Iterator, Mapping
from itertools import groupby

import numpy as np

from .names import Key
from .packed import lay_out

Shape = tuple[int, ...]


class Stage:
    """Room for the rows of some decode steps, those of one tensor side by side as in a trace."""

    def __init__(self, rows: Mapping[Key, tuple[Shape, np.dtype]], capacity: int):
        """`rows` are the shapes, of the longest step, and dtypes of one step's part of each tensor."""
        places, self.nbytes = lay_out(
            {key: ((capacity, *shape), dtype) for key, (shape, dtype) in rows.items()}
        )
        memory = np.empty(self.nbytes, np.uint8)
        self._rows = {
            key: memory[place.span].view(place.dtype).reshape(place.shape) for key, place in places.items()
        }
        raw = memoryview(memory)
        self._bytes = {key: (raw[place.span], place.nbytes // capacity) for key, place in places.items()}
        self._kept = {key: bytearray(capacity) for key in rows}
        self._steps: dict[int, int] = {}
        self._capacity = capacity

    def has_room(self, step: int) -> bool:
        return step in self._steps or len(self._steps) < self._capacity

    def keep(self, step: int, key: Key, array: np.ndarray) -> None:
        """Copy what `step` has of a tensor; where it sees fewer keys than the longest, NaN fills its row."""
        row = self._steps.setdefault(step, len(self._steps))
        rows = self._rows[key]
        if array.dtype != rows.dtype:
            array = as_stored(array, rows.dtype)
        if array.shape == rows.shape[1:]:
            rows[row] = array
        else:
            rows[row] = np.nan if rows.dtype.kind not in "iu" else 0
            rows[row][tuple(map(slice, array.shape))] = array
        self._kept[key][row] = True

    def runs(self) -> Iterator[tuple[Key, list[int], list[memoryview]]]:
        """What there is of each tensor, in runs of neighbours: their steps and the bytes of their rows."""
        whole = bytes(row < len(self._steps) for row in range(self._capacity))
        in_a_row = self._neighbours(whole)
        for key, (raw, size) in self._bytes.items():
            kept = self._kept[key]
            for steps, first in in_a_row if kept == whole else self._neighbours(kept):
                yield (
                    key,
                    steps,
                    [raw[at * size : (at + 1) * size] for at in range(first, first + len(steps))],
                )

    def _neighbours(self, kept: bytes | bytearray) -> list[tuple[list[int], int]]:
        """Steps in a row here and in the file, with the first one's row: one in between may lack a tensor."""
        have = [(step, row) for step, row in self._steps.items() if kept[row]]
        runs = []
        for _, run in groupby(enumerate(have), lambda at: (at[1][1] - at[0], at[1][0] - at[0])):
            steps, rows = zip(*(entry for _, entry in run), strict=True)
            runs.append((list(steps), rows[0]))
        return runs

    def clear(self) -> None:
        self._steps = {}
        for kept in self._kept.values():
            kept[:] = bytes(self._capacity)


def as_stored(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """A contiguous array of `dtype`; what float16 cannot hold becomes infinite there."""
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(array, dtype)
