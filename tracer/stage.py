"""Decode steps gathered in memory, so that what lies side by side in the file is written at once."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import pairwise
from operator import itemgetter

import numpy as np

from .layout import Layout
from .names import Key

Part = tuple[list[int], list[dict[Key, np.ndarray]]]  # steps, and what each of them has


class Stage:
    """What is recorded of some decode steps: `kept` [step][key], the arrays as the engine gave them."""

    def __init__(self, layout: Layout):
        self._layout = layout
        self.kept: defaultdict[int, dict[Key, np.ndarray]] = defaultdict(dict)

    @cached_property
    def _step_nbytes(self) -> int:
        return sum(array.nbytes for array in next(iter(self.kept.values())).values())

    @property
    def nbytes(self) -> int:
        """About what the arrays take: one step holds as much as another."""
        return self._step_nbytes * len(self.kept) if self.kept else 0

    def runs(self, keys: Iterable[Key]) -> Iterator[tuple[Key, list[int], list[np.ndarray]]]:
        """The tensors in runs of steps whose rows are neighbours in the file: the steps, and their arrays."""
        parts: dict[tuple[int, ...], list[Part]] = {}
        always = set.intersection(*map(set, self.kept.values())) if self.kept else set()
        every = tuple(self.kept)
        for key in keys:
            steps = every if key in always else tuple(s for s, arrays in self.kept.items() if key in arrays)
            if steps not in parts:  # most tensors have the same steps
                parts[steps] = self._parts(list(steps))
            for here, arrays in parts[steps]:
                yield key, here, [*map(itemgetter(key), arrays)]

    def _parts(self, steps: list[int]) -> list[Part]:
        """Those of some steps whose rows are neighbours."""
        bounds = neighbours(self._layout, steps) if steps else []
        return [(steps[a:b], [self.kept[step] for step in steps[a:b]]) for a, b in pairwise(bounds)]


def neighbours(layout: Layout, steps: list[int]) -> list[int]:
    """Where runs of recorded decode steps begin and end whose rows follow each other."""
    rows = [(layout.joined_row(step), layout.decode_row(step)) for step in steps]
    breaks = (np.diff(rows, axis=0) != 1).any(1) if len(rows) > 1 else np.zeros(0, bool)
    return [0, *(np.flatnonzero(breaks) + 1).tolist(), len(steps)]


def as_stored(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """A contiguous array of `dtype`; what float16 cannot hold becomes infinite there."""
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(array, dtype)


def padded(tensors: list[list[np.ndarray]], shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Arrays [tensor][step], those of a step alike, as rows [tensor, step, *shape] of `dtype`.

    NaN (0 in integers) fills rows that are shorter.
    """
    fill = np.nan if dtype.kind not in "iu" else 0
    rows = np.full((len(tensors), len(tensors[0]), *shape), fill, dtype)
    with np.errstate(over="ignore"):
        for step, arrays in enumerate(zip(*tensors)):
            corner = tuple(map(slice, arrays[0].shape))
            np.stack(arrays, out=rows[:, step][:, *corner], casting="unsafe")
    return rows
