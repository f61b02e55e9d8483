import ml_dtypes
import numpy as np

from ..cause import Cause
from ..rotation import with_angles

TYPES = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


class RopePrecision(Cause):
    """Rotary angles are computed in 16 bits: position and frequency rounded before they are multiplied.

    candle#3520 (position 15962 becomes 15968), transformers#29285. Positions up to 256 are exact in bfloat16,
    frequencies are not. `_angle`: the product of exact ones is rounded; `_table`: cosine and sine are.
    """

    id = "rope_precision"
    fix = "compute positions, frequencies and angles in float32 or better, and keep cosine and sine so"
    default = "bfloat16"
    choices = tuple(f"{kind}{how}" for how in ("", "_angle", "_table") for kind in TYPES)
    tell = "positions above 256, cosine and sine in float32"
    fires = ("rope_precision", "rope_precision@1=float16", "rope_precision@0=bfloat16_table")
    quiet = ("rope_theta=9000", "rope_scaling=1.01")

    def applies(self, op):
        return op.kind == "rope"

    def change(self, op, value, model):
        kind, _, how = value.partition("_")
        narrow = TYPES[kind]

        def angles(positions, freqs):
            if how:
                exact = positions[:, None] * freqs
                return exact.astype(narrow).astype(np.float64) if how == "angle" else exact
            return (positions.astype(narrow)[:, None] * freqs.astype(narrow)).astype(np.float64)

        return op.wrapped(with_angles(angles, narrow if how == "table" else None))
