"""Showing an array: the slice that was asked for, its statistics, and a corner of its values."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from ..errors import UserError
from .console import table

ROWS, COLUMNS = 6, 8  # values that a grid shows at most

Index = int | slice


def parse_slice(text: str, axes: Sequence[str], shape: Sequence[int]) -> tuple[Index, ...]:
    """`0,:4,::8` as one index for each axis (those not named in full); UserError where it does not fit."""
    parts = [part.strip() for part in text.split(",")]
    if len(parts) > len(axes):
        raise UserError(f"--slice {text!r} has {len(parts)} parts; the axes are {', '.join(axes)}")
    chosen = [
        _parse_index(part, axis, size, text) for part, axis, size in zip(parts, axes, shape, strict=False)
    ]
    return (*chosen, *(slice(None) for _ in axes[len(parts) :]))


def _parse_index(part: str, axis: str, size: int, text: str) -> Index:
    try:
        numbers = [int(number) if number.strip() else None for number in part.split(":")]
    except ValueError:
        numbers = []
    if len(numbers) == 1 and numbers[0] is not None:
        if not -size <= numbers[0] < size:
            raise UserError(f"--slice {text!r}: {axis} has {size} entries, so {numbers[0]} is not one")
        return numbers[0]
    if len(numbers) not in (2, 3) or numbers[2:] == [0]:
        raise UserError(f"--slice {text!r}: {part!r} is neither a number nor a range such as 2:8 or ::4")
    return slice(*numbers)


def kept_axes(axes: Sequence[str], index: Sequence[Index]) -> list[str]:
    """The axes that are left where single entries were taken out of some."""
    return [axis for axis, at in zip(axes, index, strict=True) if isinstance(at, slice)]


def statistics(array: np.ndarray) -> dict[str, float | int]:
    """Extremes, mean and rms over the finite values, and how many values are zero, NaN or infinite."""
    wide = np.asarray(array, np.float64).reshape(-1)
    finite = wide[np.isfinite(wide)]
    some = finite if finite.size else np.full(1, np.nan)
    return {
        "count": wide.size,
        "min": float(some.min()),
        "max": float(some.max()),
        "mean": float(some.mean()),
        "rms": float(np.sqrt(np.mean(some * some))),
        "zero": int(np.count_nonzero(wide == 0)),
        "nan": int(np.isnan(wide).sum()),
        "inf": int(np.isinf(wide).sum()),
    }


def statistics_line(figures: dict[str, float | int]) -> str:
    text = "  ".join(f"{name} {figures[name]:.5g}" for name in ("min", "max", "mean", "rms"))
    return text + "".join(f"  {name} {figures[name]:,}" for name in ("zero", "nan", "inf") if figures[name])


def grid(
    array: np.ndarray, axes: Sequence[str], label: Callable[[str, int], str] = lambda axis, at: str(at)
) -> tuple[Table, str]:
    """A table of the ends of the last two axes, and what it leaves out; `label` names a row of an axis."""
    note = ""
    if array.ndim > 2:
        fixed = ", ".join(f"{axis} 0 of {size}" for axis, size in zip(axes, array.shape[:-2], strict=False))
        note = f"shown: {fixed} (choose others with --slice)"
    plane = array[(0,) * max(array.ndim - 2, 0)].reshape((1, -1) if array.ndim < 2 else array.shape[-2:])
    row_axis = axes[-2] if array.ndim > 1 else ""
    rows, columns = _ends(plane.shape[0], ROWS), _ends(plane.shape[1], COLUMNS)
    corner = f"{row_axis} \\ {axes[-1]}" if row_axis else axes[-1] if axes else ""
    made = table(corner, *(">…" if at is None else f">{at}" for at in columns))
    for row in rows:
        name = "…" if row is None else label(row_axis, row) if row_axis else ""
        cells = ["…" if row is None or at is None else f"{plane[row, at]:.5g}" for at in columns]
        made.add_row(Text(name, style="dim"), *cells)
    return made, note


def _ends(size: int, limit: int) -> list[int | None]:
    """0 to size - 1, or the first and last few of them around a gap."""
    if size <= limit:
        return list(range(size))
    half = limit // 2
    return [*range(half), None, *range(size - half, size)]


def to_list(array: np.ndarray) -> Any:
    """Nested lists of plain numbers."""
    return np.asarray(array, np.float64 if array.dtype.kind in "fV" else array.dtype).tolist()
