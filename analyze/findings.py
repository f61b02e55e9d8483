"""What `compare` and `verify` report in common: places, causes, rows of figures, exit codes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..tracer.names import Key
from .metrics import Measured
from .noise import STATUSES

EXIT_CODES = {"match": 0, "rounding": 0, "diverged": 1, "incomparable": 2}
UNKNOWN = "unknown"
SHOWN = 6  # names in one sentence


@dataclass(frozen=True)
class Place:
    """A tensor of one of our steps, and the op that computes it; layer None for the global ones."""

    step: int
    layer: int | None
    tensor: str
    op: str

    @property
    def key(self) -> Key:
        return Key(self.layer, self.tensor)


@dataclass(frozen=True)
class Finding:
    """A root cause: `id` names it (`unknown`: none was found), `evidence` is what is known."""

    id: str
    step: int
    layer: int | None
    tensor: str
    confidence: float
    evidence: str
    fix: str = ""


class Row(NamedTuple):
    """One compared tensor of one step, ours (a) against the reference's (b), or against its replay.

    `values` were compared of all that the tensor has; fewer where a log shows only some.  `added` is the
    error beyond what was inherited, `added_a` and `added_b` that of each side's op by replay.
    """

    step: int
    layer: int | None
    tensor: str
    status: str
    nrmse: float
    max_abs: float
    max_rel: float
    cosine: float
    scale: float
    mag_a: float
    mag_b: float
    added: float
    noise: float
    nan_a: int
    nan_b: int
    inf_a: int
    inf_b: int
    values: int
    of: int
    added_a: float | None
    added_b: float | None

    @property
    def key(self) -> Key:
        return Key(self.layer, self.tensor)


def rows_of(
    keys: Sequence[Key],
    measured: Measured,
    judged: tuple[np.ndarray, np.ndarray, np.ndarray],
    replayed: tuple[np.ndarray | None, np.ndarray | None],
    total: np.ndarray,
    start: int = 0,
    stop: int | None = None,
) -> list[Row]:
    """The compared tensors by step, then in the order of `keys`; from number `start` to before `stop`.

    Arrays are [tensor, step]: `judged` are the added error, the noise and the status, `replayed` the errors
    that each side's op adds (None: not replayed), `total` how many elements tensors of a log have.
    """
    m, (added, noise, status) = measured, judged
    steps, indices = np.nonzero(m.compared.T)
    at = (indices[start:stop], steps[start:stop])
    figures = [m.nrmse, m.total("max_abs"), m.max_rel, m.cosine, m.scale, m.mag_a, m.mag_b, added, noise]
    bad = [m.total(name).astype(int) for name in ("nan_a", "nan_b", "inf_a", "inf_b")]
    bad += [m.values, np.maximum(total, m.values)]
    sides = [[None] * len(at[0]) if side is None else map(finite, side[at].tolist()) for side in replayed]
    values = zip(*(figure[at].tolist() for figure in (*figures, *bad)), *sides)
    said = [STATUSES[code] for code in status[at].tolist()]
    places = zip(at[1].tolist(), (keys[index] for index in at[0].tolist()), said)
    return [Row(step, key.layer, key.name, text, *rest) for (step, key, text), rest in zip(places, values)]


def finite(value: Any) -> Any:
    """A value as JSON has it: None for NaN and infinities."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
