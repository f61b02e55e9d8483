"""Measuring one block of two tensors.

There is one subtraction d = a - b, then dot products d·d, d·b and b·b.  The rest follows from them, and d·b
in place of a·b keeps its digits where a and b nearly agree:

    best-fit scale = 1 + d·b / b·b        a·a = b·b + 2 d·b + d·d        a·b = b·b + d·b

Products of float32 blocks are float32 (BLAS, at most `DOT` terms each, relative error about 1e-6), everything
across blocks is float64.  A block with NaN or infinities, or so large or small that its squares leave
float32, shows in its products and is measured again in float64, element by element.

Where the compiled kernel is there, it does the same in one pass (kernels/difference.py).
"""

import math
from typing import NamedTuple

import numpy as np

from ..kernels import difference
from .mapped import give_back

BLOCK = 1 << 17  # elements of a block: what is computed of it stays in the L2 cache
DOT = 8192  # terms of one dot product: OpenBLAS starts threads of its own above 10 000
MASKED = -1e30  # scores at or below this are masked keys: -inf, -FLT_MAX and -1e30 are in use
NEAR = 16  # |b|^2 / |d|^2 above which a·a and a·b follow from d without loss
TINY = 1e-15  # where the largest difference is below this, float32 squares lose digits

QUICK = difference.FIGURES
EXACT = ("nan_a", "nan_b", "inf_a", "inf_b", "mask_differs", "clashes")  # 0 where all numbers are plain
COLUMN = {name: i for i, name in enumerate((*QUICK, *EXACT))}
LARGEST = slice(len(difference.ADDED), len(QUICK))  # the columns of which the largest is kept: others add up

Result = tuple[int, np.ndarray, np.ndarray]


class Piece(NamedTuple):
    """Two matrices [row, width] to be measured against each other.

    `step` is the step of all rows or of each (ascending); `head_dim` splits rows into head vectors whose L2
    norm is wanted (0: none); `masked` says that -inf stands for a masked key; of each row only the first
    `valid` elements count (None: all).
    """

    tensor: int
    a: np.ndarray
    b: np.ndarray
    step: int | np.ndarray
    head_dim: int = 0
    masked: bool = False
    valid: np.ndarray | None = None


def cut(piece: Piece, rows: slice | np.ndarray) -> Piece:
    """Some rows of a piece."""
    step = piece.step if isinstance(piece.step, int) else piece.step[rows]
    valid = None if piece.valid is None else piece.valid[rows]
    return piece._replace(a=piece.a[rows], b=piece.b[rows], step=step, valid=valid)


class Workspace:
    """Buffers of one worker by name and dtype, grown to the largest block so far."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, np.dtype], np.ndarray] = {}

    def get(self, name: str, like: np.ndarray, dtype: np.dtype | None = None) -> np.ndarray:
        key = (name, np.dtype(dtype or like.dtype))
        buffer = self._buffers.get(key)
        if buffer is None or buffer.size < like.size:
            buffer = self._buffers[key] = np.empty(max(like.size, BLOCK), key[1])
        return buffer[: like.size].reshape(like.shape)


def measure_rows(piece: Piece, space: Workspace) -> Result:
    """The figures of a piece's rows, put together by step: (tensor, steps [n], figures [column, n])."""
    return by_step(piece, figures_of(piece, space))


def measure_compiled(pieces: list[Piece], mapped: bool) -> list[Result]:
    """The same of many pieces that `difference.usable` is true of; figures may end after those of QUICK."""
    runs = [_runs(piece.step) for piece in pieces]
    pairs = [_pair(piece, starts, mapped) for piece, (starts, _) in zip(pieces, runs)]
    results = []
    for piece, (_, steps), (figures, lost) in zip(pieces, runs, difference.figures(pairs)):
        results.append((piece.tensor, steps, figures))
        if lost.any():
            again = cut(piece, np.flatnonzero(lost))
            results.append(by_step(again, _exact(again)))
            give_back(piece.a)
            give_back(piece.b)
    return results


def _pair(piece: Piece, starts: np.ndarray | None, mapped: bool = False) -> difference.Pair:
    valid = None if piece.valid is None else np.ascontiguousarray(piece.valid, np.int64)
    floor = MASKED if piece.masked else None
    return difference.Pair(piece.a, piece.b, starts, valid, piece.head_dim, floor, mapped)


def figures_of(piece: Piece, space: Workspace) -> "Figures":
    """The figures of each row."""
    rows, width = piece.a.shape
    height = max(1, BLOCK // width)
    figures = Figures.empty(piece)
    with np.errstate(all="ignore"):  # what overflows or is not finite is measured again
        for first in range(0, rows, height):
            part = slice(first, first + height)
            _quick(cut(piece, part), Figures(figures.table[:, part]), space)
        lost = np.flatnonzero(~np.isfinite(figures["aa"] + figures["bb"]))
        if len(lost):
            figures.table[:, lost] = _exact(cut(piece, lost)).table
    figures.relate()
    return figures


def by_step(piece: Piece, figures: "Figures") -> Result:
    """The rows' figures put together by step."""
    starts, steps = _runs(piece.step)
    together = np.add.reduceat(figures.table, starts, axis=1)
    together[LARGEST] = np.maximum.reduceat(figures.table[LARGEST], starts, axis=1)
    return piece.tensor, steps, together


class Figures:
    """Columns of a table [column, row] by name."""

    def __init__(self, table: np.ndarray):
        self.table = table

    @classmethod
    def empty(cls, piece: Piece) -> "Figures":
        """Those of a piece's rows before anything of them is measured."""
        figures = cls(np.zeros((len(COLUMN), len(piece.a))))
        figures["count"] = piece.a.shape[1] if piece.valid is None else piece.valid
        figures["rows"] = 1
        return figures

    def relate(self) -> None:
        """Fill in each row's relative error."""
        with np.errstate(all="ignore"):
            relative = np.where(self["dd"] == 0, 0.0, self["dd"] / self["bb"])
        self["row_error2"] = np.where(np.isfinite(relative), relative, 4.0)  # a row of zeros is one row
        self["row_error"] = np.sqrt(self["row_error2"])

    def __getitem__(self, name: str) -> np.ndarray:
        return self.table[COLUMN[name]]

    def __setitem__(self, name: str, values: np.ndarray | float) -> None:
        self.table[COLUMN[name]] = values


def _runs(step: int | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first row of each run of rows that belong to one step, and that step.

    Many tensors have the same array of steps, so that of the last ones what was found is kept.
    """
    if isinstance(step, int):
        return np.zeros(1, int), np.array([step])
    known = _RUNS.get(id(step))
    if known is None or known[0] is not step:
        starts = np.flatnonzero(np.diff(step, prepend=step[0] - 1))
        known = step, starts, step[starts]
        if len(_RUNS) >= MOST_RUNS:
            _RUNS.clear()
        _RUNS[id(step)] = known
    return known[1:]


MOST_RUNS = 64
_RUNS: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}  # by identity: the array kept is the proof


def _quick(piece: Piece, figures: Figures, space: Workspace) -> None:
    """Fill in the figures by products in the block's own precision; b·b is NaN where these are no use."""
    x, y = _floats(piece.a, "x", space), _floats(piece.b, "y", space)
    if x.dtype != y.dtype:
        x, y = x.astype(np.float64, copy=False), y.astype(np.float64, copy=False)
    if difference.usable(x, y):
        found, lost = difference.figures([_pair(piece._replace(a=x, b=y), None)])[0]
        figures.table[: len(QUICK)] = found
        figures["bb"][lost] = np.nan
        return
    if piece.valid is not None:
        x, y = _zero_padding(x, y, piece.valid, space)
    if piece.masked:
        kept = _unmask(x, y, space)
        if kept is None:
            figures["bb"] = np.nan
            return
        x, y, hidden = kept
        figures["masked_a"] = figures["masked_b"] = hidden
        figures["count"] -= hidden
        figures["top_a"], figures["top_b"] = _top(x), _top(y)
    d = np.subtract(x, y, out=space.get("d", x))
    if isinstance(piece.step, int):
        top = max(float(d.max()), -float(d.min()))
        figures["max_abs"] = top
    else:
        tops = figures["max_abs"] = _top(d)
        top = float(tops.max())
    _products(x, y, d, top > 0, piece.head_dim, figures)
    if not math.isfinite(top) or (0 < top < TINY and x.dtype == np.float32):
        figures["bb"] = np.nan


def _products(
    x: np.ndarray, y: np.ndarray, d: np.ndarray, differ: bool, head_dim: int, figures: Figures
) -> None:
    """Fill in d·d, d·b, b·b, a·a and the norms of head vectors."""
    if head_dim:
        figures["vectors"] = x.shape[1] // head_dim
        for name, side in (("a", x), ("b", y)):
            vectors = side.reshape(-1, head_dim)
            squares = _dot(vectors, vectors).astype(np.float64).reshape(len(side), -1)
            figures[name * 2], figures[f"norm_{name}"] = squares.sum(-1), np.sqrt(squares).sum(-1)
    else:
        figures["bb"] = _dot(y, y)
    bb = figures["bb"]
    if not differ:
        figures["aa"] = bb
        return
    figures["dd"], figures["db"] = _dot(d, d), _dot(d, y)
    dd, db = figures["dd"], figures["db"]
    far = dd * NEAR > bb
    if far.any():
        db[far] = _dot(x[far], y[far]) - bb[far]
    if not head_dim:
        figures["aa"] = bb + 2 * db + dd
        if far.any():
            figures["aa"][far] = _dot(x[far], x[far])


def _dot(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """x[i]·y[i] for every row i [row]."""
    if x.shape[1] <= DOT:
        return np.vecdot(x, y)
    parts = (slice(first, first + DOT) for first in range(0, x.shape[1], DOT))
    return sum(np.vecdot(x[:, part], y[:, part]).astype(np.float64) for part in parts)


def _top(x: np.ndarray) -> np.ndarray:
    """max |x| of every row [row]."""
    return np.maximum(x.max(1), -x.min(1))


def _floats(block: np.ndarray, name: str, space: Workspace) -> np.ndarray:
    """The block as float32 or float64; a view where it is that already."""
    if block.dtype.char in "fd":
        return block
    if block.dtype.name == "bfloat16":  # the upper half of a float32
        bits = space.get(name, block, np.dtype(np.uint32))
        return np.left_shift(block.view(np.uint16), 16, out=bits, dtype=np.uint32).view(np.float32)
    wide = np.float64 if block.dtype.kind in "iu" else np.float32
    converted = space.get(name, block, np.dtype(wide))
    np.copyto(converted, block, casting="unsafe")
    return converted


def _zero_padding(
    x: np.ndarray, y: np.ndarray, valid: np.ndarray, space: Workspace
) -> tuple[np.ndarray, np.ndarray]:
    """Copies without the columns that no row needs, and 0 where one row is shorter than the others."""
    least, most = int(valid.min()), int(valid.max())
    padding = np.arange(least, most) >= valid[:, None]
    cleared = []
    for name, side in (("padded x", x), ("padded y", y)):
        copy = space.get(name, side[:, :most])
        np.copyto(copy, side[:, :most])
        copy[:, least:][padding] = 0
        cleared.append(copy)
    return cleared[0], cleared[1]


def _unmask(
    x: np.ndarray, y: np.ndarray, space: Workspace
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Both sides with masked scores set to 0, and their number [row]; None where the masks differ."""
    keep = np.greater(x, MASKED, out=space.get("keep x", x, np.dtype(bool)))
    keep_y = np.greater(y, MASKED, out=space.get("keep y", y, np.dtype(bool)))
    if not np.array_equal(keep, keep_y):
        return None
    hidden = x.shape[1] - np.count_nonzero(keep, axis=1)
    if not hidden.any():
        return x, y, hidden
    cleared = []
    for name, side in (("unmasked x", x), ("unmasked y", y)):
        # -inf * 0 would be NaN; a real NaN stays one, and sends the block the exact way
        finite = np.maximum(side, side.dtype.type(MASKED), out=space.get(name, side))
        cleared.append(np.multiply(finite, keep, out=finite))
    return cleared[0], cleared[1], hidden


def _exact(piece: Piece) -> Figures:
    """The figures of each row in float64."""
    figures, height = Figures.empty(piece), max(1, BLOCK // piece.a.shape[1])
    for first in range(0, len(piece.a), height):
        part = slice(first, first + height)
        _exact_block(cut(piece, part), Figures(figures.table[:, part]))
    figures.relate()
    return figures


def _exact_block(piece: Piece, figures: Figures) -> None:
    """Fill in the figures in float64, over the elements that are finite on both sides."""
    x, y = piece.a.astype(np.float64), piece.b.astype(np.float64)
    inside = np.ones(x.shape, bool) if piece.valid is None else np.arange(x.shape[1]) < piece.valid[:, None]
    hidden_x, hidden_y = (piece.masked & (side <= MASKED) & inside for side in (x, y))
    usable = np.isfinite(x) & np.isfinite(y) & ~hidden_x & ~hidden_y & inside
    alike = (x == y) | (np.isnan(x) & np.isnan(y))
    figures["count"] = usable.sum(1)
    for name, side, hidden in (("a", x, hidden_x), ("b", y, hidden_y)):
        figures[f"nan_{name}"] = (np.isnan(side) & inside).sum(1)
        figures[f"inf_{name}"] = (np.isinf(side) & ~hidden & inside).sum(1)
        figures[f"masked_{name}"] = hidden.sum(1)
    figures["mask_differs"] = (hidden_x != hidden_y).sum(1)
    figures["clashes"] = (inside & ~usable & ~alike & ~hidden_x & ~hidden_y).sum(1)
    x, y = np.where(usable, x, 0), np.where(usable, y, 0)
    d = x - y
    figures["max_abs"] = np.abs(d).max(1)
    figures["dd"], figures["db"] = (d * d).sum(1), (d * y).sum(1)
    for name, side in (("a", x), ("b", y)):
        figures[name * 2] = (side * side).sum(1)
        figures[f"top_{name}"] = np.abs(side).max(1) if piece.masked else 0
        if piece.head_dim:
            vectors = side.reshape(len(side), -1, piece.head_dim)
            figures[f"norm_{name}"] = np.linalg.norm(vectors, axis=-1).sum(-1)
            figures["vectors"] = vectors.shape[1]
