"""Name the cause of an op that does not reproduce its recorded output: replay it with one thing changed.

The change after which the op gives what was recorded, where the right op does not, is the cause.  This is
evidence, not a guess from statistics: the figure is the share of the difference that the change explains.
"""

from dataclasses import dataclass

import numpy as np

from ..tracer.graph import Op
from ..tracer.names import Key
from .cause import Cause, causes
from .replay import NotRecorded, Replay, residual

EXPLAINS = 0.9  # a change that leaves more than a tenth of the difference is not called the cause


@dataclass(frozen=True)
class Hypothesis:
    """One cause tried on one op of one step: `explained` is 1 where nothing of the difference remains."""

    cause: Cause
    value: float | None
    step: int
    key: Key
    explained: float


def wrongness(replay: Replay, op: Op, step: int) -> dict[Key, float]:
    """||recorded - right|| / ||right|| of every recorded output of `op`: the error the op adds itself."""
    right = replay.compute(op, step)
    return {
        key: residual(replay.trace.read(key, step), array) / max(_norm(array), 1e-300)
        for key, array in right.items()
        if replay.trace.has(key, step)
    }


def explain(replay: Replay, op: Op, step: int, key: Key) -> list[Hypothesis]:
    """Every cause that explains the recorded `key` (an output of `op`), the best first."""
    recorded = replay.trace.read(key, step)
    difference = residual(recorded, replay.compute(op, step)[key])
    found = []
    for cause in causes().values():
        if not cause.applies(op):
            continue
        for value in cause.candidates(op, replay, step, key):
            variant = cause.change(op, value, replay.model)
            try:
                remaining = residual(recorded, replay.compute(variant, step)[key])
            except NotRecorded:
                continue
            explained = _share(difference, remaining)
            if explained >= EXPLAINS:
                found.append(Hypothesis(cause, value, step, key, explained))
    return sorted(found, key=lambda hypothesis: -hypothesis.explained)


def layers_explained(replay: Replay, hypothesis: Hypothesis) -> list[int]:
    """The layers in which the same change of the same op explains the difference of the same step."""
    layers = []
    for op in replay.graph.ops:
        key = Key(op.out.layer, hypothesis.key.name)
        if op.out.layer is None or key not in op.outputs or not replay.trace.has(key, hypothesis.step):
            continue
        recorded = replay.trace.read(key, hypothesis.step)
        difference = residual(recorded, replay.compute(op, hypothesis.step)[key])
        variant = hypothesis.cause.change(op, hypothesis.value, replay.model)
        remaining = residual(recorded, replay.compute(variant, hypothesis.step)[key])
        if _share(difference, remaining) >= EXPLAINS:
            layers.append(op.out.layer)
    return layers


def _share(difference: float, remaining: float) -> float:
    """The share of `difference` that a change explains, given what remains."""
    if remaining == difference:  # also where both are infinite: the change explains nothing
        return 0.0
    return 1.0 if np.isinf(difference) else max(0.0, 1 - remaining / difference)


def _norm(array: np.ndarray) -> float:
    finite = array[np.isfinite(array)]
    return float(np.sqrt(np.dot(finite, finite)))
