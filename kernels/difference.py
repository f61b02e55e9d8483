"""How rows of two matrices differ: the figures that a comparison is made of, in one pass over both.

Compiled only (`difference.c`); the same in NumPy, for every dtype, is analyze/blocks.py.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from . import native

ADDED = (  # what adds up over rows
    *("count", "rows", "dd", "db", "bb", "aa", "row_error2", "vectors", "norm_a", "norm_b"),
    *("masked_a", "masked_b"),
)
LARGEST = ("max_abs", "row_error", "top_a", "top_b")  # of what the largest over rows is kept
FIGURES = (*ADDED, *LARGEST)

Found = tuple[np.ndarray, np.ndarray]


class Pair(NamedTuple):
    """Two float32 matrices [row, width], C-contiguous.

    Rows from one of `starts` (int64, ascending from 0) to the next belong together (None: each by itself);
    `head_dim` splits rows into vectors (0: none); numbers at or below `floor` are hidden; of each row the
    first `valid` (int64 [row]) numbers count.  `mapped` says that both are mapped from files.
    """

    a: np.ndarray
    b: np.ndarray
    starts: np.ndarray | None
    valid: np.ndarray | None = None
    head_dim: int = 0
    floor: float | None = None
    mapped: bool = False


def usable(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether `figures` takes these two."""
    plain = (x.dtype.char == "f" and x.flags.c_contiguous for x in (a, b))
    return native.LIBRARY is not None and all(plain)


def figures(pairs: Sequence[Pair]) -> list[Found]:
    """FIGURES of the rows that belong together, float64 [figure, group], and which rows are left out [row].

    With d = a - b: how many numbers and rows; d·d, d·b, b·b, a·a; the sum of d·d / b·b over rows; how many
    vectors, and the sums of the L2 norms of a's and b's; how many numbers are hidden; the largest |d| and
    |d| / |b|, and with a `floor` the largest |a| and |b|.  Hidden numbers count as 0.  512 terms at most are
    summed in float32, the rest in float64: rows for which that does not do (NaN, squares that leave float32,
    a number that only one side hides) are left out.  The pages of mapped matrices are given back.
    """
    found = [_empty(pair) for pair in pairs]
    # the interpreter is let go of once for all of them
    native.LIBRARY.differ([(*pair, *out) for pair, out in zip(pairs, found)])
    return found


def _empty(pair: Pair) -> Found:
    rows = len(pair.a)
    groups = rows if pair.starts is None else len(pair.starts)
    return np.empty((len(FIGURES), groups)), np.zeros(rows, bool)
