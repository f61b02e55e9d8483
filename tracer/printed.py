"""Tensors as programs print them: numbers in brackets, most of them left out as `...`."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from .errors import UserError

_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*(?:e[-+]?\d+)?|\.\d+(?:e[-+]?\d+)?|nan|inf(?:inity)?)", re.IGNORECASE)
MAX_ELEMENTS = 1 << 28  # of a tensor of which a log shows a few numbers


class Malformed(UserError):
    """Text that does not hold the numbers which it should."""


@dataclass(frozen=True)
class Run:
    """Items along one axis: those in front of a `...` and those after it (None: nothing was left out)."""

    head: list
    tail: list | None

    def places(self, size: int) -> list[tuple[int, object]]:
        """(index, item) on an axis of `size`; Malformed where there are too many or too few."""
        count = len(self.head) + len(self.tail or ())
        if count > size or (self.tail is None and count < size):
            raise Malformed(f"{count} entries were printed of {size}")
        tail = self.tail or []
        return [*enumerate(self.head), *enumerate(tail, size - len(tail))]


def numbers(text: str) -> list[float]:
    """The numbers of a list that is separated by commas or spaces; Malformed for anything else."""
    parts = text.replace(",", " ").split()
    for part in parts:
        if not _NUMBER.fullmatch(part):
            raise Malformed(f"{part[:40]!r} is no number")
    return [float(part) for part in parts]


def row(text: str) -> Run:
    """`0.1, 0.2, ..., 0.9` as a run of numbers."""
    parts = re.split(r",?\s*\.\.\.\s*,?", text)
    if len(parts) > 2:
        raise Malformed("a row leaves numbers out in two places")
    return Run(numbers(parts[0]), numbers(parts[1]) if len(parts) == 2 else None)


def nested(lines: Iterable[str], depth: int) -> Run:
    """Lines of brackets, `depth` levels around the rows, as runs of runs; Malformed if they do not match."""
    stack: list[Run] = [Run([], None)]
    for line in lines:
        text = line.strip()
        if not text:
            continue
        if text.startswith("..."):
            _leave_out(stack)
        elif text == "[":
            stack.append(Run([], None))
        elif text in ("]", "],"):
            if len(stack) < 2:
                raise Malformed("a bracket is closed that was not opened")
            _append(stack, stack.pop())
        elif text[0] == "[" and text.rstrip(",")[-1] == "]":
            if len(stack) != depth + 1:
                raise Malformed("a row stands where none can be")
            _append(stack, row(text.rstrip(",")[1:-1]))
        else:
            raise Malformed(f"{text[:40]!r} is no row of numbers")
    if len(stack) != 1:
        raise Malformed("a bracket is not closed")
    return stack[0]


def _leave_out(stack: list[Run]) -> None:
    top = stack[-1]
    if top.tail is not None:
        raise Malformed("rows are left out in two places")
    stack[-1] = Run(top.head, [])


def _append(stack: list[Run], item: Run) -> None:
    if not stack:
        raise Malformed("a bracket is closed that was not opened")
    top = stack[-1]
    (top.head if top.tail is None else top.tail).append(item)


def fill(run: Run, shape: tuple[int, ...], missing: float = np.nan) -> np.ndarray:
    """The printed numbers at their places in a float32 array of `shape`, `missing` where none was printed."""
    array = np.full(shape, missing, np.float32)
    _fill(run, array)
    return array


def _fill(run: Run, array: np.ndarray) -> None:
    if array.ndim == 1:
        if run.tail is None and len(run.head) == len(array):
            array[:] = run.head
            return
        for index, value in run.places(len(array)):
            array[index] = value
        return
    for index, item in run.places(len(array)):
        if not isinstance(item, Run):
            raise Malformed("brackets are nested less deep than the shape")
        _fill(item, array[index])


def decimals(text: str) -> int | None:
    """Digits behind the point of the first number in `text` that has a point."""
    match = re.search(r"\d\.(\d+)", text)
    return len(match[1]) if match else None


def rounding(text: str) -> float:
    """How far the numbers in `text` may be off the values that were printed: half of a last digit."""
    found = re.findall(r"\d\.(\d*)(?:e([-+]?\d{1,3}))?", text, re.IGNORECASE)
    powers = (min(int(exponent or 0) - len(digits), 300) for digits, exponent in found)  # no float is larger
    return max((0.5 * 10.0**power for power in powers), default=0.0)
