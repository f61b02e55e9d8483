import numpy as np

from ..cause import Cause
from ..reattend import attended, merged, weighted


class FaAccOverflow(Cause):
    """The sum of P·V is kept in float16 before it is divided by l: it overflows from 65504 on.

    llama.cpp#17746, ik_llama.cpp#1196: m and l are finite, the output is infinite or NaN.
    """

    id = "fa_acc_overflow"
    fix = "accumulate P·V in float32, or add ln 8 to the maximum"
    tell = "l before the division, and the accumulator's type"
    needs = ("loud_v",)
    fires = ("fa_acc_overflow",)
    quiet = ("value_scale=0.5",)

    def applies(self, op):
        return op.kind == "attention"

    def change(self, op, value, model):
        def overflowing(scored):
            right = attended(scored)
            with np.errstate(over="ignore", invalid="ignore"):
                acc = weighted(scored.p, scored.v).astype(np.float16).astype(scored.v.dtype)
            return right | {"out": np.where(np.isfinite(acc), right["out"], acc)}

        return op.wrapped(merged(overflowing))
