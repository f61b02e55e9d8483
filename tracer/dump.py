"""What an engine left behind, before it is a trace: tensors of steps, by name and shape, loaded on demand."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .axes import Heads
from .format import Header
from .names import Key


@dataclass(frozen=True)
class Piece:
    """One tensor of one step as a source has it.  `load` gives its values in `shape`, C order.

    `axes` are the source's own (see axes.py), empty where those of the vocabulary are meant; `printed` holds
    what a log says of the whole tensor: `sum`, `sum_sq`, and `nan`, flat positions of printed NaNs.
    """

    step: int
    key: Key
    shape: tuple[int, ...]
    dtype: str
    load: Callable[[], np.ndarray]
    axes: tuple[str, ...] = ()
    source: str = ""
    op: str = ""
    conventions: Mapping[str, Any] = field(default_factory=dict)
    printed: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.key} of step {self.step} ({self.source or 'unnamed'})"


@dataclass(frozen=True)
class StepInfo:
    """What a source says of a step: any of it may be unknown."""

    n_tokens: int | None = None
    start: int | None = None
    tokens: tuple[int, ...] = ()


@dataclass
class Dump:
    """Everything that a source has.  `end` says how it ended where that was not regular."""

    pieces: list[Piece]
    steps: dict[int, StepInfo] = field(default_factory=dict)
    header: Header = field(default_factory=lambda: Header(engine="unknown"))
    heads: Heads = field(default_factory=Heads)
    tile: int | None = None  # keys of one tile of the online softmax
    end: str = ""
    notes: list[str] = field(default_factory=list)
    tokens: tuple[int, ...] = ()  # ids by position, where they are not known by step
    half_split: bool = False  # Q and K are to be put from transformers' order into that of a llama's GGUF
    only: tuple[range, ...] | None = None  # the numbers of the steps to keep; None keeps all

    def keeps(self, number: int) -> bool:
        return self.only is None or any(number in chosen for chosen in self.only)

    def step(self, number: int) -> StepInfo:
        return self.steps.get(number, StepInfo())
