"""One recorded tensor of one step beside its replay, whole, to look at the shape of a difference."""

import numpy as np

from ..tracer.gguf import Model
from ..tracer.names import NAMES, Key
from ..tracer.trace import Trace
from .align import View
from .pattern import Sample, take
from .recompute import Recompute, Result

HIDDEN = {"scores": -np.inf, "probs": 0.0}  # keys after those that a block of queries sees


def sample_of(trace: Trace, model: Model, key: Key, step: int) -> Sample:
    """What was recorded (a) and what its op gives in float64 (b)."""
    recompute = Recompute(trace, model, [key])

    def kept(result: Result) -> tuple[int, np.ndarray] | None:
        inside = np.flatnonzero(result.span.step == step)
        if not inside.size:
            return None
        values = np.moveaxis(result.values, _row_axis(key), 0)[inside]
        return result.span.rows.start + int(inside[0]), values

    blocks = sorted((found for found in recompute.run(kept) if found is not None), key=lambda block: block[0])
    parts = [values for _, values in blocks]
    recorded = trace.read(key, step)
    if trace.tensors[key].joined:
        rows = slice(blocks[0][0], blocks[0][0] + sum(map(len, parts)))
        recorded = recompute.recorded(key, rows)
    a = np.moveaxis(recorded, _row_axis(key), 0)
    b = np.concatenate([_grown(part, a.shape, HIDDEN.get(key.name, np.nan)) for part in parts])
    axes = NAMES[key.name].axes
    row = axes[_row_axis(key)]
    order = (row, *(axis for axis in axes if axis != row))
    return take(View(a, b, order, trace.rows(step)), masked=key.name == "scores")


def _row_axis(key: Key) -> int:
    return next(i for i, axis in enumerate(NAMES[key.name].axes) if axis in ("token", "query"))


def _grown(part: np.ndarray, shape: tuple[int, ...], hidden: float) -> np.ndarray:
    """A block [row, ...] with all the keys (or tiles) of the recorded tensor."""
    part = part[tuple(map(slice, (len(part), *shape[1:])))]
    missing = [(0, 0), *((0, want - have) for want, have in zip(shape[1:], part.shape[1:]))]
    return np.pad(part, missing, constant_values=hidden)
