"""Numbers that a file's type could not hold: an engine's 70000 is infinite in a trace stored in float16.

A tensor with such numbers is not read as it was recorded: in their place stands what its op gives.
"""

import ml_dtypes
import numpy as np

from ..tracer.format import TensorSpec, numpy_dtype
from ..tracer.names import Key
from ..tracer.trace import Trace
from .roundoff import UNIT

CLOSE = 0.99  # of the largest number: what is less by so much may have been rounded up to it
ROWS = 1024  # that are looked at in one go


def largest(spec: TensorSpec, computed: str) -> float:
    """The largest number of the type a tensor is stored in; infinite where an engine's type has no larger.

    `computed` is the name of the type that the engine computes in.
    """
    if spec.dtype not in UNIT:
        return np.inf
    most, computes = (
        float(ml_dtypes.finfo(numpy_dtype(name)).max)
        for name in (spec.dtype, computed if computed in UNIT else "float32")
    )
    return most if most < computes else np.inf


def is_clipped(trace: Trace, key: Key) -> bool:
    """Whether a token-first tensor holds infinities that may be numbers too large for its type."""
    spec = trace.tensors[key]
    steps = [step.index for step in trace.flushed if trace.has(key, step.index)]
    if not spec.joined or not steps or not np.isfinite(largest(spec, trace.header.compute_dtype)):
        return False
    rows = trace.rows_until(key, steps[-1])
    return any(bool(np.isinf(rows[at : at + ROWS]).any()) for at in range(0, len(rows), ROWS))


def unclipped(recorded: np.ndarray, computed: np.ndarray, most: float) -> np.ndarray:
    """`recorded` with what is computed in place of infinities, where that is beyond `most`; same shapes."""
    if not np.isfinite(most) or not (lost := np.isinf(recorded)).any():
        return recorded
    with np.errstate(invalid="ignore"):
        lost &= (np.abs(computed) >= CLOSE * most) & (np.signbit(recorded) == np.signbit(computed))
    return np.where(lost, computed, recorded)
