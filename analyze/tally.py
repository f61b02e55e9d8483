"""Figures of many blocks, brought to one for each place."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np


class Place(NamedTuple):
    """Where a figure belongs: prefill and decode are judged apart, as other kernels compute them."""

    phase: str
    name: str
    layer: int | None


@dataclass
class Entry:
    """A weighted mean under way."""

    total: Any = 0.0
    weight: float = 0.0
    steps: set[int] = field(default_factory=set)

    @property
    def mean(self) -> Any:
        return self.total / self.weight


class Tally:
    """Weighted means of figures (numbers, or arrays of one shape) by place."""

    def __init__(self) -> None:
        self._entries: dict[Place, Entry] = {}

    def add(self, place: Place, value: Any, weight: float, steps: Sequence[int]) -> None:
        """Count `value` in; one that is not finite, of another shape, or of no weight is left out."""
        entry = self._entries.setdefault(place, Entry())
        if (
            weight > 0
            and np.isfinite(value).all()
            and (not entry.weight or np.shape(entry.total) == np.shape(value))
        ):
            entry.total = entry.total + value * weight
            entry.weight += weight
            entry.steps.update(steps)

    def items(self, least: float = 0.0) -> Iterator[tuple[Place, Entry]]:
        """The places whose weights add up to `least`."""
        return ((p, entry) for p, entry in self._entries.items() if entry.weight and entry.weight >= least)
