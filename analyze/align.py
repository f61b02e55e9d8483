"""What of two traces can be compared, and where it lies.

Rows are matched by token, not by step: a prompt fed at once lines up with the same prompt fed in chunks, and
16 decode steps with 64.  Tensors with a key axis are compared on the keys that both steps see.  The steps of
a comparison are ours (A's); its order is step, then execution order.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from ..tracer.format import Step, TensorSpec
from ..tracer.names import Key
from ..tracer.trace import Trace
from . import partial
from .arrangement import arrange
from .blocks import DOT, Piece
from .differences import comparable, notes, nothing_in_common, row_axis
from .metrics import Measured
from .sources import Source, sources
from .tokens import agreement
from .wiring import kind_of


class Run(NamedTuple):
    """Tokens whose rows lie one after the other on both sides: `rows_*` in datasets that join all steps.

    `step` is our step of them all or, where there are several, of each.
    """

    tokens: np.ndarray
    rows_a: slice
    rows_b: slice
    step: int | np.ndarray


class View(NamedTuple):
    """The part of a tensor that one of our steps and one of the reference's have in common, in `axes`.

    `unseen` marks what a log does not show.
    """

    a: np.ndarray
    b: np.ndarray
    axes: tuple[str, ...]
    tokens: np.ndarray
    unseen: np.ndarray | None = None


@dataclass
class Alignment:
    """What is comparable; `refusal` says why nothing is, `bos` that only a leading token differs."""

    a: Source
    b: Source
    common: int
    keys: list[Key] = field(default_factory=list)
    problems: dict[Key, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    refusal: str | None = None
    bos: str | None = None

    def __post_init__(self) -> None:
        self._tokens: dict[bytes, np.ndarray] = {}  # most tensors were written in the same steps
        self._runs: dict[tuple[bytes, bool], list[Run]] = {}
        self._splits: dict[bytes, tuple[np.ndarray, _Decoded | None]] = {}
        self.index = {key: i for i, key in enumerate(self.keys)}

    @cached_property
    def steps(self) -> int:
        """How many of our steps there are; figures are arrays [tensor, step]."""
        return len(self.a.steps)

    # ---- rows

    def tokens(self, key: Key) -> np.ndarray:
        """The tokens for which both sides recorded `key`."""
        has_a, has_b = self.a.has(key), self.b.has(key)
        known = has_a.tobytes() + has_b.tobytes()
        if known not in self._tokens:
            step_a, step_b = self.a.step_of[: self.common], self.b.step_of[: self.common]
            kept = (self.a.row_of[: self.common] >= 0) & (self.b.row_of[: self.common] >= 0)
            self._tokens[known] = np.flatnonzero(has_a[step_a] & has_b[step_b] & kept)
        return self._tokens[known]

    def _cut(self, tokens: np.ndarray, *, by_step: bool) -> list[Run]:
        """The runs of `tokens`; `by_step` cuts them also where either side begins a new step."""
        known = (tokens.tobytes(), by_step)
        if known not in self._runs:
            rows_a, rows_b = self.a.row_of[tokens], self.b.row_of[tokens]
            breaks = (np.diff(rows_a) != 1) | (np.diff(rows_b) != 1)
            if by_step:
                breaks |= (np.diff(self.a.step_of[tokens]) != 0) | (np.diff(self.b.step_of[tokens]) != 0)
            edges = [0, *(np.flatnonzero(breaks) + 1), len(tokens)] if len(tokens) else []
            self._runs[known] = [
                Run(
                    tokens[i:j],
                    slice(rows_a[i], rows_a[i] + j - i),
                    slice(rows_b[i], rows_b[i] + j - i),
                    _one_or_each(self.a.step_of[tokens[i:j]]),
                )
                for i, j in pairwise(edges)
            ]
        return self._runs[known]

    # ---- what is measured

    def pieces(self) -> Iterator[Piece]:
        """Everything that is comparable, as matrices for `metrics.measure`."""
        for index, key in enumerate(self.keys):
            spec = self.a.specs[key]
            if self.is_partial(key):
                yield from partial.pieces(self, index, key)
            elif spec.joined:
                yield from self._joined(index, key, spec)
            else:
                yield from self._blocks(index, key, spec)

    def _joined(self, index: int, key: Key, spec: TensorSpec) -> Iterator[Piece]:
        a, b = self.a.joined(key), self.b.joined(key)
        by_head = (side for side in (spec, self.b.specs[key]) if side.axes[-2:] == ("head", "dim"))
        head_dim = next((side.sizes["dim"] for side in by_head), 0)
        for run in self._cut(self.tokens(key), by_step=False):
            x, y = (
                side[rows].reshape(len(run.tokens), -1) for side, rows in ((a, run.rows_a), (b, run.rows_b))
            )
            yield Piece(index, x, y, run.step, head_dim)

    def _blocks(self, index: int, key: Key, spec: TensorSpec) -> Iterator[Piece]:
        once, decoded = self._split(self.tokens(key))
        for run in self._cut(once, by_step=True):
            view = self._view(key, spec, run)
            for a, b in _matrices(view.a, view.b):
                yield Piece(index, a, b, run.step, masked=_is_scores(key))
        if decoded is not None:
            yield from self._decoded(index, key, spec, decoded)

    def _split(self, tokens: np.ndarray) -> tuple[np.ndarray, "_Decoded | None"]:
        """Tokens of prefill steps, on either side, and of what both sides decoded."""
        known = tokens.tobytes()
        if known not in self._splits:
            a, b = self.a, self.b
            decoded = a.decodes[a.step_of[tokens]] & b.decodes[b.step_of[tokens]]
            steps_a, steps_b = a.step_of[tokens[decoded]], b.step_of[tokens[decoded]]
            keys = np.minimum(a.kv_len[steps_a], b.kv_len[steps_b])
            both = _Decoded(steps_a, a.decode_index[steps_a], b.decode_index[steps_b], keys)
            self._splits[known] = tokens[~decoded], both if decoded.any() else None
        return self._splits[known]

    def _decoded(self, index: int, key: Key, spec: TensorSpec, found: "_Decoded") -> Iterator[Piece]:
        """Decode steps, all at once where both sides lay them out alike."""
        a, b = self.a.decode(key), self.b.decode(key)
        if found.in_a_row and a.shape[1:] == b.shape[1:]:
            width, steps, valid = found.rows(spec, a.shape[1:])
            x, y = (side[at[0] : at[-1] + 1].reshape(-1, width) for side, at in ((a, found.a), (b, found.b)))
            yield Piece(index, x, y, steps, 0, _is_scores(key), valid)
            return
        for i, j, step, seen in zip(found.a, found.b, found.steps.tolist(), found.keys.tolist()):
            corner = tuple(map(slice, spec.shape(1, seen)))
            for x, y in _matrices(a[i][corner], b[j][corner]):
                yield Piece(index, x, y, step, masked=_is_scores(key))

    # ---- looking closer

    def views(self, key: Key, step: int) -> Iterator[View]:
        """What one of our steps has in common with each of the reference's that cover it.

        Of what a log shows the values as far as they count (partial.py).
        """
        specs = (self.a.specs[key], self.b.specs[key])
        for run, view in self._step_views(key, step):
            yield partial.as_printed(view, specs, self._steps(run)) if self.is_partial(key) else view

    def plain_views(self, key: Key, step: int) -> Iterator[View]:
        """The same as they are stored."""
        return (view for _, view in self._step_views(key, step))

    def is_partial(self, key: Key) -> bool:
        """Whether either side has the tensor from a log."""
        return partial.is_partial(self.a.specs[key]) or partial.is_partial(self.b.specs[key])

    def _step_views(self, key: Key, step: int) -> Iterator[tuple[Run, View]]:
        for run in self._cut(self.tokens(key), by_step=True):
            if self._steps(run)[0].index == step:
                yield run, self._view(key, self.a.specs[key], run)

    def _view(self, key: Key, spec: TensorSpec, run: Run) -> View:
        if spec.joined:
            a, b = self.a.joined(key)[run.rows_a], self.b.joined(key)[run.rows_b]
            return View(a, b.reshape(a.shape), spec.axes, run.tokens)
        steps = self._steps(run)
        shape = spec.shape(len(run.tokens), min(step.kv_len for step in steps))
        sides = []
        for source, step, rows in zip((self.a, self.b), steps, (run.rows_a, run.rows_b)):
            if step.phase == "decode":
                block, first = source.decode(key)[source.decode_index[step.index]], 0
            else:
                block, first = source.prefill(key, step.index), rows.start - source.first_row[step.index]
            corner = [slice(size) for size in shape]
            corner[row_axis(spec) or 0] = slice(first, first + len(run.tokens))
            sides.append(block[tuple(corner)])
        return View(sides[0], sides[1], spec.axes, run.tokens)

    def _steps(self, run: Run) -> tuple[Step, Step]:
        token = run.tokens[0]
        return self.a.steps[self.a.step_of[token]], self.b.steps[self.b.step_of[token]]

    def _covered_b(self) -> int:
        """How many tensors, counted for each of the reference's steps, are compared."""
        tokens = [self.tokens(key) for key in self.keys]
        distinct = {id(each): self.b.step_of[each] for each in tokens}
        counts = {i: np.count_nonzero(np.diff(steps)) + 1 for i, steps in distinct.items() if len(steps)}
        return int(sum(counts.get(id(each), 0) for each in tokens))

    def phase(self, step: int) -> str:
        """`prefill` or `decode`."""
        return self.a.steps[step].phase

    def op(self, key: Key) -> str:
        """The op that computes `key`, as either trace names it."""
        return self.b.specs[key].op or self.a.specs[key].op or kind_of(key)

    def coverage(self, measured: Measured | None) -> dict[str, int]:
        """How many tensors, counted for each step, were compared, lie on one side only, or don't fit."""
        compared = 0 if measured is None else int(measured.compared.sum())
        misfit = _written(self.a, self.problems)
        in_a = _written(self.a, self.a.specs)
        in_b = _written(self.b, (key for key in self.b.specs if key not in self.problems))
        covered_b = self._covered_b() if compared else 0
        return {
            "compared": compared,
            "only_a": in_a - compared - misfit,
            "only_b": in_b - covered_b,
            "incomparable": misfit,
        }


def _written(source: Source, keys: Iterable[Key]) -> int:
    """How many tensors of these were written, counted for each step."""
    return sum(int(np.count_nonzero(source.has(key))) for key in keys)


def _one_or_each(steps: np.ndarray) -> int | np.ndarray:
    return int(steps[0]) if steps[0] == steps[-1] else steps


def _is_scores(key: Key) -> bool:
    return key.name == "scores"


class _Decoded:
    """What both sides decoded: our `steps`, their places `a` and `b` on each side, and the `keys` seen."""

    def __init__(self, steps: np.ndarray, a: np.ndarray, b: np.ndarray, keys: np.ndarray):
        self.steps, self.a, self.b, self.keys = steps, a, b, keys
        self.in_a_row = bool((np.diff(a) == 1).all() and (np.diff(b) == 1).all())
        self._rows: dict[tuple, tuple[int, np.ndarray, np.ndarray | None]] = {}

    def rows(self, spec: TensorSpec, shape: tuple[int, ...]) -> tuple[int, np.ndarray, np.ndarray | None]:
        """The width of the rows that a tensor is cut into; of each its step, and how many elements count.

        `shape` is that of a step.  All layers have the same.
        """
        known = spec.axes, *spec.sizes.items(), shape
        if known not in self._rows:
            width, valid = _padding(spec, shape, self.keys)
            self._rows[known] = width, np.repeat(self.steps, math.prod(shape) // width), valid
        return self._rows[known]


def _padding(spec: TensorSpec, shape: tuple[int, ...], keys: np.ndarray) -> tuple[int, np.ndarray | None]:
    """The width of the rows that a decode block is cut into, and how many elements of each row count.

    `shape` is that of a step, `keys` [step] how many keys each of them sees.
    """
    if spec.axes[-1] == "key":
        return shape[-1], np.repeat(keys, np.prod(shape[:-1]))
    width = int(np.prod(shape[1:]))
    if spec.axes[0] == "tile":
        tiles = -(-keys // spec.sizes["tile"])
        return width, (np.arange(shape[0]) < tiles[:, None]).ravel() * width
    return shape[0] * width, None


def _matrices(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Two arrays of one shape as pairs of matrices that are views of them."""
    if a.flags.c_contiguous and b.flags.c_contiguous:
        whole = a.size // DOT * DOT  # long rows are measured faster than many short ones
        a, b = a.reshape(-1), b.reshape(-1)
        yield a[:whole].reshape(-1, DOT), b[:whole].reshape(-1, DOT)
        yield a[None, whole:], b[None, whole:]
    elif a.ndim == 2:
        yield a, b
    else:
        for part_a, part_b in zip(a, b):
            yield from _matrices(part_a, part_b)


def align(a: Trace, b: Trace) -> Alignment:
    """Match what two traces recorded; `b` is the reference."""
    agreed = agreement(a, b)
    source_a, source_b, statistics = sources(a, b)
    keys, problems = comparable(source_a, source_b)
    said = [text for text in (agreed.note, statistics) if text]
    said += arrange(source_a, source_b, keys, agreed.common)
    said += notes(source_a, source_b, problems)
    found = Alignment(source_a, source_b, agreed.common, keys, problems, said, agreed.refusal, agreed.bos)
    found.notes += partial.notes(found)
    if found.refusal is None and found.bos is None and not any(len(found.tokens(key)) for key in keys):
        found.refusal = nothing_in_common(source_a, source_b, problems)
    return found
