"""Walking a trace in execution order, in bounded memory: one layer of one step (or run of decode steps)."""

from collections.abc import Iterator
from functools import cached_property
from itertools import groupby

import ml_dtypes
import numpy as np

from ..tracer.format import ROW_AXES, Step, TensorSpec, numpy_dtype
from ..tracer.names import NAMES, Key, execution_order
from ..tracer.stats import BINS, STATS
from ..tracer.trace import Trace
from .partial import is_partial

DECODE_RUN = 64  # decode steps that are looked at together: their rows are few and their reads many
PART = 1 << 20  # elements of a tensor that are widened at once: 4 MiB as float32

_FILLERS = {"scores": -np.inf, "probs": 0.0}  # what keys beyond a decode step's own count as


class Block:
    """The tensors of one layer (None: those outside the layers) in one step, or in a run of decode steps.

    Rows are tokens; `rows` are their indices over the whole run, so row r sees keys 0 to rows[r].  Arrays are
    read when asked for, as float32 or float64.
    """

    def __init__(self, trace: Trace, steps: list[Step], keys: list[Key]):
        self.trace, self.steps, self.layer = trace, steps, keys[0].layer
        self.phase = steps[0].phase
        self.specs: dict[str, TensorSpec] = {key.name: trace.tensors[key] for key in keys}
        self.rows = np.concatenate([trace.rows(step.index) for step in steps])
        self._summaries: dict[str, np.ndarray] = {}
        self._lengths: dict[str, np.ndarray] = {}

    def has(self, name: str) -> bool:
        """Whether the tensor, or recorded figure, is here with the axes that its name promises."""
        return name in self.specs and usual(self.specs[name])

    def together(self, *names: str) -> bool:
        """Whether the tensors are all here, and of one size along the axes that they share."""
        if not all(map(self.has, names)):
            return False
        first, *others = (self.specs[name].sizes for name in names)
        return all(first[axis] == other[axis] for other in others for axis in first.keys() & other.keys())

    def stored(self, *names: str) -> list[str]:
        """Under which names the tensors, or the figures in their place, are recorded here."""
        return [kept for name in names for kept in (name, f"{name}.l2", f"{name}.stats") if self.has(kept)]

    def eps(self, *names: str) -> float:
        """The relative precision of the coarsest storage among tensors."""
        return max(_eps(self.specs[name].dtype) for name in self.stored(*names))

    def steps_of(self, rows: np.ndarray) -> list[int]:
        """The steps in which rows (counted inside the block) lie."""
        starts = [step.start for step in self.steps]
        found = np.searchsorted(starts, self.rows[rows], side="right") - 1
        return sorted({self.steps[index].index for index in found.tolist()})

    @cached_property
    def kv_len(self) -> np.ndarray:
        """How many keys the step of each row holds [row]."""
        return np.concatenate([np.full(len(self.trace.rows(s.index)), s.kv_len) for s in self.steps])

    # ---- whole tensors

    def raw(self, name: str) -> np.ndarray:
        """The tensor as stored: rows of all steps joined, on the query axis where there is no token axis."""
        key, spec = Key(self.layer, name), self.specs[name]
        if spec.joined:
            return self.trace.rows_until(key, self.steps[-1].index)[-len(self.rows) :]
        arrays = [self.trace.read(key, step.index) for step in self.steps]
        if len(arrays) == 1:
            return arrays[0]
        axis = spec.axes.index("query") if "query" in spec.axes else 0
        return np.concatenate([_grown(array, arrays[-1].shape, axis, name) for array in arrays], axis)

    def tensor(self, name: str) -> np.ndarray:
        """The whole tensor, widened."""
        return widen(self.raw(name))

    def parts(self, name: str) -> Iterator[np.ndarray]:
        """The tensor a few entries of its first axis (tokens, or heads) at a time."""
        raw = self.raw(name)
        count = max(1, PART * len(raw) // max(raw.size, 1))
        return (widen(raw[first : first + count]) for first in range(0, len(raw), count))

    def by_row(self, name: str) -> np.ndarray:
        """The tensor as [row, *], all of it in each row where it has no axis of rows."""
        array, axes = self.tensor(name), self.specs[name].axes
        at = next((index for index, axis in enumerate(axes) if axis in ROW_AXES), None)
        if at is None:
            return np.broadcast_to(array.reshape(-1), (len(self.rows), array.size))
        return np.moveaxis(array, at, 0).reshape(len(self.rows), -1)

    # ---- figures of rows, measured here or recorded in place of the tensor

    def can_summarize(self, name: str) -> bool:
        return self.has(name) or self.has(f"{name}.stats")

    def summary(self, name: str, figure: str) -> np.ndarray:
        """A figure of `stats.STATS` over the finite values of each row: [token], or [head, query]."""
        if name not in self._summaries:
            measured = self.tensor(f"{name}.stats") if not self.has(name) else self._measure(name)
            self._summaries[name] = measured
        return self._summaries[name][..., STATS.index(figure)]

    def _measure(self, name: str) -> np.ndarray:
        if self.specs[name].joined or len(self.steps) == 1:
            kept = 1 if self.specs[name].joined else 2
            parts = (part.reshape(*part.shape[:kept], -1) for part in self.parts(name))
            return np.concatenate([row_figures(part) for part in parts])
        key = Key(self.layer, name)  # step by step, as joined they are padded
        arrays = (widen(self.trace.read(key, step.index)) for step in self.steps)
        return np.concatenate([row_figures(array.reshape(*array.shape[:2], -1)) for array in arrays], axis=1)

    def can_length(self, name: str) -> bool:
        return self.has(name) or self.has(f"{name}.l2")

    def lengths(self, name: str) -> np.ndarray:
        """The L2 norm of each head vector [token, head]."""
        if name not in self._lengths:
            self._lengths[name] = self._measure_lengths(name) if self.has(name) else self.tensor(f"{name}.l2")
        return self._lengths[name]

    def _measure_lengths(self, name: str) -> np.ndarray:
        return np.concatenate([np.sqrt(np.einsum("thd,thd->th", part, part)) for part in self.parts(name)])


def usual(spec: TensorSpec) -> bool:
    """Whether a tensor, or a figure of one such as q.stats, has the axes that its name promises."""
    name, _, figure = spec.key.name.partition(".")
    if not figure:
        return name in NAMES and NAMES[name].axes == spec.axes
    rows, last = spec.axes[:-1], spec.axes[-1]
    if figure == "l2":
        return spec.axes == ("token", "head")
    wanted = {"stats": ("stat", len(STATS)), "hist": ("bin", BINS)}.get(figure)
    return rows in (("token",), ("head", "query")) and (last, spec.sizes.get(last)) == wanted


def blocks(trace: Trace) -> Iterator[Block]:
    """Every block of a trace that holds something, in execution order; nothing that was read off a log."""
    ordered = sorted((key for key, spec in trace.tensors.items() if not is_partial(spec)), key=_order)
    for steps, present in _runs(trace, ordered):
        keys = [key for key, there in zip(ordered, present, strict=True) if there]
        for _, group in groupby(keys, key=lambda key: execution_order(key)[:2]):
            yield Block(trace, steps, list(group))


def _order(key: Key) -> tuple:
    """Recorded statistics such as q.stats come where their tensor would."""
    return (*execution_order(Key(key.layer, key.name.partition(".")[0])), key.name)


def _runs(trace: Trace, keys: list[Key]) -> Iterator[tuple[list[Step], tuple[bool, ...]]]:
    """Steps to look at together, with what was written in each of them."""
    present = ((step, tuple(trace.has(key, step.index) for key in keys)) for step in trace.steps)

    def alike(entry: tuple[Step, tuple[bool, ...]]) -> tuple:
        step, there = entry
        return (step.phase, step.index // DECODE_RUN if step.phase == "decode" else step.index, there)

    for (_, _, there), run in groupby(present, key=alike):
        if any(there):
            yield [step for step, _ in run], there


def _grown(array: np.ndarray, shape: tuple[int, ...], axis: int, name: str) -> np.ndarray:
    """`array` with the axes other than `axis` extended to `shape`: later steps have more keys and tiles."""
    sizes = enumerate(zip(array.shape, shape, strict=True))
    missing = [(0, 0 if at == axis else want - have) for at, (have, want) in sizes]
    if not any(after for _, after in missing):
        return array
    if name in _FILLERS:
        return np.pad(widen(array), missing, constant_values=_FILLERS[name])
    return np.pad(array, missing, mode="edge")  # a tile that saw no key leaves the running state as it is


def widen(array: np.ndarray) -> np.ndarray:
    """As float32, or float64 where it is that: narrow types overflow in the figures that rules compute."""
    return array if array.dtype in (np.float32, np.float64) else array.astype(np.float32)


def _eps(dtype: str) -> float:
    kind = numpy_dtype(dtype)
    return float(ml_dtypes.finfo(kind).eps) if kind.kind in "fV" else 0.0


def row_figures(rows: np.ndarray) -> np.ndarray:
    """The figures of `stats.STATS` of rows [..., n] -> [..., 6], over what is finite in each.

    As `stats.summarize` records them, but quick where everything is finite, which it mostly is.
    """
    if not rows.shape[-1]:
        return np.zeros((*rows.shape[:-1], len(STATS)), np.float32)
    squares = np.einsum("...i,...i->...", rows, rows)
    lowest, highest = rows.min(-1), rows.max(-1)
    if np.isfinite(squares).all():
        none = np.zeros_like(squares)
        mean, rms = rows.mean(-1), np.sqrt(squares / rows.shape[-1])
        return np.stack([lowest, highest, mean, rms, none, none], axis=-1)
    finite = np.isfinite(rows)
    count, values = np.maximum(finite.sum(-1), 1), np.where(finite, rows, 0)
    squares = np.einsum("...i,...i->...", values, values, dtype=np.float64)
    return np.stack(
        [
            rows.min(-1, where=finite, initial=np.inf),
            rows.max(-1, where=finite, initial=-np.inf),
            values.sum(-1, dtype=np.float64) / count,
            np.sqrt(squares / count),
            np.isnan(rows).sum(-1),
            np.isinf(rows).sum(-1),
        ],
        axis=-1,
    )
