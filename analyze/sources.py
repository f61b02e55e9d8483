"""A trace's tensors as whole datasets, and a full trace seen as if only its statistics had been recorded."""

from functools import cached_property
from typing import NamedTuple

import numpy as np

from ..tracer import stats
from ..tracer.format import Step, TensorSpec, numpy_dtype
from ..tracer.names import Key
from ..tracer.trace import Trace
from .mapped import give_back

CHUNK = 1 << 20  # elements that are summarised at once


class Arrange(NamedTuple):
    """Heads and elements of heads in another order."""

    heads: np.ndarray | None
    dims: np.ndarray | None

    def __call__(self, array: np.ndarray, axes: tuple[str, ...]) -> np.ndarray:
        """A copy of an array of these axes in this order."""
        for name, index in (("head", self.heads), ("dim", self.dims)):
            if index is not None and name in axes:
                array = np.take(array, index, axes.index(name))
        return array


class Source:
    """The tensors of a trace by dataset: all steps joined, a block of a prefill step, or of all decode steps.

    `steps` are the finished ones.  `step_of` gives the step and `row_of` the row in joined datasets of each
    token; -1 where it has none.
    """

    def __init__(self, trace: Trace):
        self.trace = trace
        self.arranged: dict[Key, Arrange] = {}  # tensors that are to be shown in another order
        self.steps: list[Step] = [step for i, step in enumerate(trace.flushed) if step.index == i]
        tokens = max((step.kv_len for step in self.steps), default=0)
        self.step_of = np.full(tokens, -1)
        for step in self.steps:
            self.step_of[step.start : step.kv_len] = step.index
        self.row_of = np.full(tokens, -1)
        kept = trace.recorded[trace.recorded < tokens]
        self.row_of[kept] = np.flatnonzero(trace.recorded < tokens)
        self.row_of[self.step_of < 0] = -1

    @cached_property
    def specs(self) -> dict[Key, TensorSpec]:
        return self.trace.tensors

    def has(self, key: Key) -> np.ndarray:
        """Whether the tensor was written, for each finished step [step]."""
        return self.trace.written(key)[: len(self.steps)]

    @cached_property
    def first_row(self) -> np.ndarray:
        """The row, in joined datasets, with which each step begins [step]."""
        return np.searchsorted(self.trace.recorded, [step.start for step in self.trace.steps])

    @cached_property
    def decodes(self) -> np.ndarray:
        """Which steps are decode steps [step]."""
        return np.array([step.phase == "decode" for step in self.trace.steps], bool)

    @cached_property
    def kv_len(self) -> np.ndarray:
        """How many keys each step sees [step]."""
        return np.array([step.kv_len for step in self.trace.steps])

    @cached_property
    def decode_index(self) -> np.ndarray:
        """The place of each step among the recorded decode steps [step]."""
        kept = [len(self.trace.rows(step.index)) > 0 for step in self.trace.steps]
        return np.cumsum(self.decodes & np.array(kept)) - 1

    def joined(self, key: Key) -> np.ndarray:
        """All rows of a token-first tensor [recorded token, ...]."""
        return self._ordered(key, np.asarray(self.trace.rows_until(key, self.steps[-1].index)))

    def _ordered(self, key: Key, array: np.ndarray, before: tuple[str, ...] = ()) -> np.ndarray:
        if key not in self.arranged:
            return array
        return self.arranged[key](array, (*before, *self.trace.tensors[key].axes))

    def prefill(self, key: Key, step: int) -> np.ndarray:
        """A prefill step of a tensor with a query axis, in its axes."""
        return self._ordered(key, np.asarray(self.trace.read(key, step)))

    def decode(self, key: Key) -> np.ndarray:
        """All decode steps of a tensor with a query axis [decode step, *axes], padded to the longest."""
        return self._ordered(key, self._decoded(key), ("step",))

    def _decoded(self, key: Key) -> np.ndarray:
        """The same in the order of the file.

        They share a dataset (docs/format.md), so where that is mapped this is a view of it.
        """
        steps = np.flatnonzero(self.decodes[: len(self.steps)] & self.has(key))
        count = int(self.decode_index[steps[-1]]) + 1
        whole = self.trace.dataset(key, int(steps[0]))
        if whole is not None:
            return whole[:count]
        spec = self.trace.tensors[key]
        padded = spec.shape(1, int(self.kv_len.max()))
        block = np.full((count, *padded), np.nan, numpy_dtype(spec.dtype))
        for i, step in zip(self.decode_index[steps], steps):
            array = self.trace.read(key, int(step))
            block[i][tuple(map(slice, array.shape))] = array
        return block


class Summaries(Source):
    """A full trace shown as its statistics, to be compared with a trace recorded with --stats-only."""

    @cached_property
    def _made(self) -> dict[Key, tuple[TensorSpec, TensorSpec]]:
        """The declared statistic and the tensor it is made of, by the statistic's key."""
        pairs = ((made, spec) for spec in self.trace.tensors.values() for made in stats.specs(spec))
        return {made.key: (made, spec) for made, spec in pairs}

    @cached_property
    def specs(self) -> dict[Key, TensorSpec]:
        return {key: made for key, (made, _) in self._made.items()}

    def has(self, key: Key) -> np.ndarray:
        return super().has(self._made[key][1].key)

    def joined(self, key: Key) -> np.ndarray:
        spec = self._made[key][1]
        return self._summarize(key, spec, super().joined(spec.key), axis=0)

    def prefill(self, key: Key, step: int) -> np.ndarray:
        spec = self._made[key][1]
        return self._summarize(key, spec, super().prefill(spec.key, step), axis=spec.axes.index("query"))

    def decode(self, key: Key) -> np.ndarray:
        spec = self._made[key][1]
        if key == spec.key:
            return super().decode(key)
        steps = np.flatnonzero(self.decodes[: len(self.steps)] & self.has(key))
        return np.stack([self._one(key, spec, self.trace.read(spec.key, int(step))) for step in steps])

    def _summarize(self, key: Key, spec: TensorSpec, array: np.ndarray, axis: int) -> np.ndarray:
        """One statistic of a large array, a slice of rows at a time."""
        if key == spec.key:
            return array
        rows = max(1, CHUNK * array.shape[axis] // max(array.size, 1))
        parts = []
        for first in range(0, array.shape[axis], rows):
            part = array[(slice(None),) * axis + (slice(first, first + rows),)]
            parts.append(self._one(key, spec, part))
            give_back(part)
        return np.concatenate(parts, axis=axis)

    @staticmethod
    def _one(key: Key, spec: TensorSpec, array: np.ndarray) -> np.ndarray:
        wide = array.astype(np.float64 if array.dtype == np.float64 else np.float32)
        return stats.summarize(spec, wide)[key]


def sources(a: Trace, b: Trace) -> tuple[Source, Source, str | None]:
    """Both traces in the same terms: where one holds statistics only, the other's are computed."""
    only = [any(key.name.endswith(".stats") for key in trace.tensors) for trace in (a, b)]
    if only[0] == only[1]:
        return Source(a), Source(b), "both hold statistics only" if only[0] else None
    made = [Source(trace) if is_stats else Summaries(trace) for trace, is_stats in zip((a, b), only)]
    side = "ours" if only[0] else "the reference"
    return made[0], made[1], f"{side} holds statistics only: they are compared with the other's own"
