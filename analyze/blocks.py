"""Measuring one block of two tensors.

There is one subtraction d = a - b, then dot products d·d, d·b and b·b.  The rest follows from them, and d·b
in place of a·b keeps its digits where a and b nearly agree:

    best-fit scale = 1 + d·b / b·b        a·a = b·b + 2 d·b + d·d        a·b = b·b + d·b

Products of float32 blocks are float32 (BLAS, at most `DOT` terms each, relative error about 1e-6), everything
across blocks is float64.  A block with NaN or infinities, or so large or small that its squares leave
float32, shows in its products and is measured again in float64, element by element.
"""

from typing import NamedTuple

import numpy as np

BLOCK = 1 << 17  # elements of a block: what is computed of it stays in the L2 cache
DOT = 8192  # terms of one dot product: OpenBLAS starts threads of its own above 10 000
MASKED = -1e30  # scores at or below this are masked keys: -inf, -FLT_MAX and -1e30 are in use
NEAR = 16  # |b|^2 / |d|^2 above which a·a and a·b follow from d without loss
TINY = 1e-15  # where the largest difference is below this, float32 squares lose digits

ADDED = (  # what adds up over blocks
    *("count", "rows", "dd", "db", "bb", "aa", "row_error2", "vectors", "norm_a", "norm_b"),
    *("nan_a", "nan_b", "inf_a", "inf_b", "masked_a", "masked_b", "mask_differs", "clashes"),
)
LARGEST = ("max_abs", "row_error", "top_a", "top_b")  # of what the largest over blocks is kept
COLUMN = {name: i for i, name in enumerate(ADDED)}
TOP = {name: i for i, name in enumerate(LARGEST)}

Columns = dict[str, np.ndarray]
Result = tuple[int, np.ndarray, np.ndarray, np.ndarray]


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


def cut(piece: Piece, rows: slice) -> Piece:
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


def measure_block(piece: Piece, space: Workspace) -> Result:
    """Measure one block: the quick way, or element by element where its figures do not tell."""
    columns = _quick(piece, space) or _exact(piece)
    rows, width = piece.a.shape
    columns.setdefault("count", np.full(rows, width) if piece.valid is None else piece.valid)
    columns["rows"] = np.ones(rows)
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.where(columns["dd"] == 0, 0.0, columns["dd"] / columns["bb"])
    columns["row_error2"] = np.where(np.isfinite(relative), relative, 4.0)  # a row of zeros is one row
    columns["row_error"] = np.sqrt(columns["row_error2"])
    sums = np.zeros((rows, len(ADDED)))
    largest = np.zeros((rows, len(LARGEST)))
    for name, values in columns.items():
        if name in COLUMN:
            sums[:, COLUMN[name]] = values
        else:
            largest[:, TOP[name]] = values
    starts, steps = _runs(piece.step, rows)
    return piece.tensor, steps, np.add.reduceat(sums, starts), np.maximum.reduceat(largest, starts)


def _runs(step: int | np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """The first row of each run of rows that belong to one step, and that step."""
    if isinstance(step, int):
        return np.zeros(1, int), np.array([step])
    starts = np.flatnonzero(np.diff(step, prepend=step[0] - 1))
    return starts, step[starts]


def _quick(piece: Piece, space: Workspace) -> Columns | None:
    """The figures of each row [row], by products in the block's own precision; None where they are no use."""
    x, y = _floats(piece.a, "x", space), _floats(piece.b, "y", space)
    if x.dtype != y.dtype:
        x, y = x.astype(np.float64, copy=False), y.astype(np.float64, copy=False)
    columns: Columns = {}
    if piece.valid is not None:
        x, y = _zero_padding(x, y, piece.valid, space)
    if piece.masked:
        kept = _unmask(x, y, space)
        if kept is None:
            return None
        x, y, hidden = kept
        columns["masked_a"] = columns["masked_b"] = hidden
        columns["count"] = (x.shape[1] if piece.valid is None else piece.valid) - hidden
        columns["top_a"], columns["top_b"] = _top(x), _top(y)
    with np.errstate(over="ignore", invalid="ignore"):
        d = np.subtract(x, y, out=space.get("d", x))
        columns["max_abs"] = _top(d) if not isinstance(piece.step, int) else np.array(_flat_top(d))
        top = columns["max_abs"].max()
        columns |= _products(x, y, d, top > 0, piece.head_dim)
    sound = np.isfinite(columns["aa"]).all() and np.isfinite(columns["bb"]).all() and np.isfinite(top)
    lost = x.dtype == np.float32 and 0 < top < TINY
    return columns if sound and not lost else None


def _products(x: np.ndarray, y: np.ndarray, d: np.ndarray, differ: bool, head_dim: int) -> Columns:
    columns: Columns = {}
    if head_dim:
        for name, side in (("a", x), ("b", y)):
            squares = _dot(*(2 * [side.reshape(-1, head_dim)])).reshape(len(side), -1)
            columns[name * 2] = squares.sum(-1)
            columns[f"norm_{name}"] = np.sqrt(squares).sum(-1)
        columns["vectors"] = np.full(len(x), x.shape[1] // head_dim)
    else:
        columns["bb"] = _dot(y, y)
    if not differ:
        columns["dd"] = columns["db"] = np.zeros(len(x))
        return {"aa": columns["bb"]} | columns
    dd, db, bb = _dot(d, d), _dot(d, y), columns["bb"]
    far = dd * NEAR > bb
    if far.any():
        db = np.where(far, _dot(x, y) - bb, db)
    if "aa" not in columns:
        near = bb + 2 * db + dd
        columns["aa"] = np.where(far, _dot(x, x), near) if far.any() else near
    return columns | {"dd": dd, "db": db}


def _dot(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """x[i]·y[i] for every row i, float64 [row]."""
    parts = (slice(first, first + DOT) for first in range(0, max(x.shape[1], 1), DOT))
    return sum(np.vecdot(x[:, part], y[:, part]).astype(np.float64) for part in parts)


def _top(x: np.ndarray) -> np.ndarray:
    """max |x| of every row [row]."""
    return np.maximum(x.max(1), -x.min(1))


def _flat_top(x: np.ndarray) -> np.ndarray:
    return np.maximum(x.max(), -x.min())


def _floats(block: np.ndarray, name: str, space: Workspace) -> np.ndarray:
    """The block as float32 or float64; a view where it is that already."""
    if block.dtype in (np.float32, np.float64):
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


def _exact(piece: Piece) -> Columns:
    """The figures of each row in float64, over the elements that are finite on both sides."""
    x, y = piece.a.astype(np.float64), piece.b.astype(np.float64)
    inside = np.ones(x.shape, bool) if piece.valid is None else np.arange(x.shape[1]) < piece.valid[:, None]
    hidden_x, hidden_y = (piece.masked & (side <= MASKED) & inside for side in (x, y))
    usable = np.isfinite(x) & np.isfinite(y) & ~hidden_x & ~hidden_y & inside
    with np.errstate(invalid="ignore"):
        alike = (x == y) | (np.isnan(x) & np.isnan(y))
    columns: Columns = {
        "count": usable.sum(1),
        "nan_a": (np.isnan(x) & inside).sum(1),
        "nan_b": (np.isnan(y) & inside).sum(1),
        "inf_a": (np.isinf(x) & ~hidden_x & inside).sum(1),
        "inf_b": (np.isinf(y) & ~hidden_y & inside).sum(1),
        "masked_a": hidden_x.sum(1),
        "masked_b": hidden_y.sum(1),
        "mask_differs": (hidden_x != hidden_y).sum(1),
        "clashes": (inside & ~usable & ~alike & ~hidden_x & ~hidden_y).sum(1),
    }
    x, y = np.where(usable, x, 0), np.where(usable, y, 0)
    d = x - y
    columns |= {"max_abs": np.abs(d).max(1, initial=0), "dd": (d * d).sum(1), "db": (d * y).sum(1)}
    columns |= {"aa": (x * x).sum(1), "bb": (y * y).sum(1)}
    if piece.masked:
        columns |= {"top_a": np.abs(x).max(1, initial=0), "top_b": np.abs(y).max(1, initial=0)}
    if piece.head_dim:
        columns["vectors"] = np.full(len(x), x.shape[1] // piece.head_dim)
        for name, side in (("norm_a", x), ("norm_b", y)):
            columns[name] = np.linalg.norm(side.reshape(len(x), -1, piece.head_dim), axis=-1).sum(-1)
    return columns
