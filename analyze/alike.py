"""Tensors that one op computes in many layers: what is asked of each can be asked of all at once."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..tracer.format import TensorSpec
from ..tracer.names import Key
from .wiring import Wiring

Specs = Mapping[Key, TensorSpec]


class Alike(NamedTuple):
    """Tensors whose ops and inputs differ by their layer alone: the first one's key, and all their `rows`.

    `inputs` are the rows of their inputs, by the first one's keys.
    """

    key: Key
    rows: np.ndarray
    inputs: dict[Key, np.ndarray]


def alike(keys: Sequence[Key], sides: Sequence[Specs], wiring: Wiring) -> list[Alike] | None:
    """The tensors in groups, rows being places in `keys`; None where one reads what is not before it."""
    row = {key: i for i, key in enumerate(keys)}
    groups: defaultdict[tuple[Any, ...], list[int]] = defaultdict(list)
    described = [_described(key, sides) for key in keys]
    for i, key in enumerate(keys):
        read = wiring.inputs(key)
        if not all(row.get(name, i) < i for name in read):
            return None
        groups[(key.name, *described[i], *((name.name, *described[row[name]]) for name in read))].append(i)
    found = []
    for rows in groups.values():
        first = wiring.inputs(keys[rows[0]])
        read_rows = np.array([[row[name] for name in wiring.inputs(keys[i])] for i in rows], int)
        found.append(Alike(keys[rows[0]], np.array(rows), dict(zip(first, read_rows.T))))
    return found


def _described(key: Key, sides: Sequence[Specs]) -> tuple[Any, ...]:
    """All that is declared of a tensor, but for its layer."""
    return tuple(
        (spec.axes, *spec.sizes.items(), spec.dtype, spec.op, repr(spec.conventions))
        for spec in (side[key] for side in sides)
    )
