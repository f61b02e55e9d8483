"""How rows of two matrices differ: the figures that a comparison is made of, in one pass over both.

Compiled only (`difference.c`); the same in NumPy, for every dtype, is analyze/blocks.py.
"""

import numpy as np

from . import native

FIGURES = ("dd", "db", "ab", "bb", "aa", "norm_a", "norm_b", "hidden", "max_abs", "top_a", "top_b")


def usable(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether `figures` takes these two."""
    plain = (x.dtype.char == "f" and x.flags.c_contiguous for x in (a, b))
    return native.LIBRARY is not None and all(plain)


def figures(
    a: np.ndarray,
    b: np.ndarray,
    *,
    valid: np.ndarray | None = None,
    head_dim: int = 0,
    floor: float | None = None,
) -> np.ndarray:
    """a, b float32 [row, width] -> FIGURES of each row, float64 [figure, row].

    With d = a - b: d·d, d·b, a·b, b·b, a·a; the sums of the L2 norms of a's and b's vectors of `head_dim`
    numbers; how many numbers are hidden; the largest |d|, and with a `floor` the largest |a| and |b|.  Of
    each row the first `valid` [row] numbers count.  Numbers at or below `floor` are hidden: they count as 0, and
    where only one side has one, b·b is NaN.  512 terms at most are summed in float32, the rest in float64.
    """
    rows, width = a.shape
    found = np.empty((len(FIGURES), rows))
    lengths = None if valid is None else np.ascontiguousarray(valid, np.int64)
    native.LIBRARY.differ(a, b, lengths, head_dim, floor is not None, floor or 0.0, width, found)
    return found
