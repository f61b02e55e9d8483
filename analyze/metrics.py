"""How two tensors differ, in one pass over blocks that stay in the L2 cache, on all cores.

NRMSE = |a - b| / |b|, ours a against the reference's b; the best-fit scale is argmin_s |a - s b|.  Scores of
masked keys (-inf, or what engines use for it) are left out of every figure, and counted.  Memory is a few
blocks for each worker: pages of mapped files are given back as they are done with.
"""

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..kernels import difference
from .blocks import COLUMN, LARGEST, NEAR, Piece, Result, Workspace, cut, measure_compiled, measure_rows
from .mapped import give_back, is_mapped

TASK = 1 << 21  # elements that a worker takes at a time


@dataclass(frozen=True)
class Measured:
    """The figures of every compared tensor and step; properties are arrays [tensor, step].

    `table` [column, tensor, step] is what they are computed from.
    """

    table: np.ndarray

    @classmethod
    def empty(cls, tensors: int, steps: int) -> "Measured":
        return cls(np.zeros((len(COLUMN), tensors, steps)))

    def add(self, results: list[Result]) -> None:
        """Count the figures of some rows in."""
        for tensor, steps, figures in results:
            first, last = int(steps[0]), int(steps[-1]) + 1
            at = slice(first, last) if last - first == len(steps) else steps  # a view is quicker to add to
            largest = np.maximum(self.table[LARGEST, tensor, at], figures[LARGEST])
            self.table[: len(figures), tensor, at] += figures
            self.table[LARGEST, tensor, at] = largest

    def total(self, name: str) -> np.ndarray:
        """One column of the table [tensor, step]."""
        return self.table[COLUMN[name]]

    @cached_property
    def compared(self) -> np.ndarray:
        """Where anything at all was compared."""
        return (self.total("count") + self.total("clashes") + self.total("mask_differs") + self.bad_both) > 0

    @cached_property
    def values(self) -> np.ndarray:
        """How many elements were compared, those that are not finite included."""
        return (self.total("count") + self.bad_both).astype(int)

    @cached_property
    def bad_both(self) -> np.ndarray:
        """Elements that are not finite on our side: with `clashes` 0, on both sides alike."""
        return self.total("nan_a") + self.total("inf_a") + self.total("masked_a")

    @cached_property
    def equal(self) -> np.ndarray:
        """Where both sides hold the same values, NaN and infinities included."""
        same = (self.total("max_abs") == 0) & (self.total("clashes") == 0) & (self.total("mask_differs") == 0)
        return same & self.compared

    @cached_property
    def nrmse(self) -> np.ndarray:
        """|a - b| / |b| over the elements that are finite on both sides; NaN where there are none."""
        return np.where(self.total("count") > 0, _ratio_root(self.total("dd"), self.total("bb")), np.nan)

    @cached_property
    def row_nrmse(self) -> np.ndarray:
        """Root mean square over rows (tokens) of |a - b| / |b| in each: no row outweighs the others."""
        return _ratio_root(self.total("row_error2"), self.total("rows"))

    @cached_property
    def max_rel(self) -> np.ndarray:
        """The largest |a - b| in units of the reference's RMS: elements of b near zero cannot blow it up."""
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = self.total("max_abs") / self.rms_b
        return np.where(self.total("max_abs") == 0, 0.0, ratio)

    @cached_property
    def scale(self) -> np.ndarray:
        """The s that minimises |a - s b|; NaN where b is zero."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return 1 + self.total("db") / self.total("bb")

    @cached_property
    def cosine(self) -> np.ndarray:
        """a·b / (|a| |b|); 1 where the sides are equal, NaN where one side is zero."""
        aa, bb, dd = self.total("aa"), self.total("bb"), self.total("dd")
        with np.errstate(divide="ignore", invalid="ignore"):
            far = (bb + self.total("db")) / np.sqrt(aa * bb)
            gap = (aa - bb) / (np.sqrt(aa) + np.sqrt(bb))
            near = 1 - (dd - gap * gap) / (2 * np.sqrt(aa * bb))  # keeps the digits of 1 - cosine
        return np.where(self.equal, 1.0, np.clip(np.where(dd > bb / NEAR, far, near), -1, 1))

    @cached_property
    def rms_a(self) -> np.ndarray:
        return _ratio_root(self.total("aa"), self.total("count"))

    @cached_property
    def rms_b(self) -> np.ndarray:
        return _ratio_root(self.total("bb"), self.total("count"))

    @cached_property
    def mag_a(self) -> np.ndarray:
        """Our magnitude: mean L2 norm of head vectors, largest |score|, or RMS, whichever the tensor has."""
        return self._magnitude("norm_a", "top_a", self.rms_a)

    @cached_property
    def mag_b(self) -> np.ndarray:
        return self._magnitude("norm_b", "top_b", self.rms_b)

    def _magnitude(self, norm: str, top: str, rms: np.ndarray) -> np.ndarray:
        vectors = self.total("vectors")
        mean = self.total(norm) / np.maximum(vectors, 1)
        return np.where(vectors > 0, mean, np.where(self.total(top) > 0, self.total(top), rms))


def _ratio_root(squares: np.ndarray, by: np.ndarray) -> np.ndarray:
    """sqrt(squares / by), 0 where both are 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(squares == 0, 0.0, np.sqrt(squares / by))


def measure(pieces: Iterable[Piece], tensors: int, steps: int, workers: int | None = None) -> Measured:
    """Measure every piece; memory is a few blocks a worker, mapped pages are given back as they are done.

    The compiled kernel measures mapped pieces while others are prepared.  Without it they are all prepared
    first: every call of HDF5 would wait for the workers to let go of the interpreter.  Pieces of compressed
    traces are in memory and done with at once.
    """
    measured, waiting, running = Measured.empty(tensors, steps), [], []
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        for task in _tasks(pieces):
            if not all(is_mapped(piece.a) and is_mapped(piece.b) for piece in task):
                measured.add(_work(task, mapped=False))
            elif all(difference.usable(piece.a, piece.b) for piece in task):
                running.append(pool.submit(_work, task, mapped=True))
            else:
                waiting.append(task)
        running += [pool.submit(_work, task, mapped=True) for task in waiting]
        for each in running:
            measured.add(each.result())
    return measured


def _tasks(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Cut large pieces by rows and put small ones together, to about TASK elements each."""
    batch, size = [], 0
    for piece in pieces:
        height, width = piece.a.shape
        if not piece.a.size:
            continue
        rows = max(1, TASK // width)
        for first in range(0, height, rows):
            part = slice(first, min(first + rows, height))
            batch.append(piece if rows >= height else cut(piece, part))
            size += (part.stop - part.start) * width
            if size >= TASK:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


def _work(batch: list[Piece], mapped: bool) -> list[Result]:
    """Measure the pieces of one task."""
    compiled = [piece for piece in batch if difference.usable(piece.a, piece.b)]
    results = measure_compiled(compiled, mapped) if compiled else []
    space = Workspace()
    for piece in batch if len(compiled) < len(batch) else ():
        if not difference.usable(piece.a, piece.b):
            results.append(measure_rows(piece, space))
            give_back(piece.a)
            give_back(piece.b)
    return results
