"""Where each tensor of each step lies in a trace: the one account of it for writing and for reading."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from .errors import TraceError
from .format import Step, TensorSpec
from .names import Key


class Place(NamedTuple):
    """A piece of a dataset: rows `first` to `first + rows` of the dataset at `path`, which has `shape`."""

    path: str
    shape: tuple[int, ...]
    first: int
    rows: int


class Layout:
    """The rows that are recorded of each step, and their places.

    `recorded` are the indices of the tokens whose rows are kept, ascending.
    """

    def __init__(self, steps: Sequence[Step], recorded: np.ndarray):
        _check(steps, recorded)
        self.steps, self.recorded = list(steps), recorded
        self.n_tokens = max(step.kv_len for step in steps)
        self._datasets: dict[tuple[Key, int], tuple[str, tuple[int, ...]]] = {}
        first = np.searchsorted(recorded, [step.start for step in steps])
        last = np.searchsorted(recorded, [step.kv_len for step in steps])
        self._first, self._last = first.tolist(), last.tolist()
        decode = np.array([step.phase == "decode" for step in steps])
        kept = decode & (last > first)
        self._decode_index = (np.cumsum(kept) - 1).tolist()
        self._decode_count = int(kept.sum())
        self._one_prefill = np.count_nonzero(~decode) == 1
        prefills = np.flatnonzero(~decode & (last > first))
        self._block_steps = [int(index) for index in (*prefills, *np.flatnonzero(kept)[:1])]

    def tokens(self, step: int) -> np.ndarray:
        """Indices, over the whole run, of the tokens whose rows are recorded of a step."""
        return self.recorded[self._first[step] : self._last[step]]

    def rows(self, step: int) -> int:
        """How many rows of a step are recorded."""
        return self._last[step] - self._first[step]

    def shape(self, spec: TensorSpec, step: int) -> tuple[int, ...]:
        """The shape of what is recorded of a tensor in a step."""
        return spec.shape(self.rows(step), self.steps[step].kv_len)

    def place(self, spec: TensorSpec, step: int) -> Place:
        """Tensors with a token axis join all steps.  The key axis of the others grows: a prefill step has a
        block of its own, decode steps share one, padded to the longest."""
        path, shape = self._dataset(spec, step)
        if spec.joined:
            return Place(path, shape, self._first[step], self._last[step] - self._first[step])
        if self.steps[step].phase == "prefill":
            return Place(path, shape, 0, shape[0])
        return Place(path, shape, self._decode_index[step], 1)

    def _dataset(self, spec: TensorSpec, step: int) -> tuple[str, tuple[int, ...]]:
        """Path and shape of the dataset that holds a step of a tensor; asked for at every write."""
        prefill = self.steps[step].phase == "prefill"
        which = spec.key, step if prefill and not spec.joined else -1
        if which not in self._datasets:
            if spec.joined:
                self._datasets[which] = spec.key.path, spec.shape(len(self.recorded), 0)
            elif prefill:
                block = "prefill" if self._one_prefill else f"prefill_{step:04d}"
                self._datasets[which] = f"{spec.key.path}/{block}", self.shape(spec, step)
            else:
                shape = self._decode_count, *spec.shape(1, self.n_tokens)
                self._datasets[which] = f"{spec.key.path}/decode", shape
        return self._datasets[which]

    def decode_row(self, step: int) -> int:
        """Where a recorded decode step comes among these: consecutive ones have neighbouring rows."""
        return self._decode_index[step]

    def joined_row(self, step: int) -> int:
        """Where the first recorded row of a step comes among those of all steps."""
        return self._first[step]

    def neighbours(self, steps: list[int]) -> list[list[int]]:
        """Recorded decode steps in runs whose rows follow each other."""
        rows = [(self.joined_row(step), self.decode_row(step)) for step in steps]
        breaks = [0, *(np.flatnonzero((np.diff(rows, axis=0) != 1).any(1)) + 1).tolist(), len(steps)]
        return [steps[first:end] for first, end in pairwise(breaks)]

    def datasets(self, spec: TensorSpec) -> list[Place]:
        """A place in each dataset of a tensor."""
        return [self.place(spec, step) for step in ([0] if spec.joined else self._block_steps)]

    def is_padded(self, spec: TensorSpec, step: int) -> bool:
        """True where the place has a step axis in front and is as long as the longest step."""
        return not spec.joined and self.steps[step].phase == "decode"


def _check(steps: Sequence[Step], recorded: np.ndarray) -> None:
    if not steps:
        raise TraceError("a run without steps has no trace")
    if recorded.ndim != 1 or recorded.dtype.kind != "i" or (np.diff(recorded, prepend=-1) < 1).any():
        raise TraceError("the recorded tokens are not a list of ascending indices")
    for index, step in enumerate(steps):
        possible = step.phase in ("prefill", "decode") and step.start >= 0 and step.n_tokens > 0
        if step.index != index or not possible:
            raise TraceError(f"step {index} is impossible: {step}")
        if step.phase == "decode" and step.n_tokens > 1:
            raise TraceError(f"step {index} decodes {step.n_tokens} tokens at once: call it a prefill step")
