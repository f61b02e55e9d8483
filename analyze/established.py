"""What is known of an op whose fault no cause explains."""

import numpy as np

from ..tracer.names import Key
from .blocks import MASKED
from .cause import causes
from .hypothesis import Search
from .pattern import Sample, describe

SHOWN = 12  # ops that are named
SAID = 3  # sentences on the shape of the difference
WORTH = 0.1  # the share from which on the nearest cause is told


def established(search: Search, key: Key) -> str:
    """Between what and what the fault lies, what the difference looks like, and which cause comes nearest."""
    segment = search.segment
    told = [f"{key} does not follow from its own inputs, and none of {len(causes())} causes explains it"]
    if len(segment.ops) > 1:
        names = ", ".join(str(op.out) for op in segment.ops[:SHOWN])
        more = f" and {len(segment.ops) - SHOWN} more" if len(segment.ops) > SHOWN else ""
        told.append(f"the fault is in one of {names}{more}, as nothing between was recorded")
    axes = segment.replay.trace.tensors[key].axes
    place = next((index for index, axis in enumerate(axes) if axis in ("token", "query")), 0)
    recorded = np.moveaxis(segment.replay.trace.read(key, segment.step), place, 0).astype(np.float64)
    right = np.moveaxis(segment.right(key, segment.step), place, 0).copy()
    if recorded.shape == right.shape:
        order = (axes[place], *axes[:place], *axes[place + 1 :])
        told += describe(_sample(recorded, right, order), 0.0)[:SAID]
    nearest = search.nearest
    if nearest is not None and nearest.explained > WORTH:
        told.append(f"{nearest} comes nearest, with {nearest.explained:.0%} of the difference")
    return "; ".join(told)


def _sample(recorded: np.ndarray, right: np.ndarray, axes: tuple[str, ...]) -> Sample:
    hidden = (recorded <= MASKED, right <= MASKED)
    for side, away in zip((recorded, right), hidden):
        side[~np.isfinite(side) | away] = np.nan
    return Sample(recorded, right, axes, np.arange(len(recorded)), hidden)
