import numpy as np

from ..cause import Cause
from ..reattend import attended, merged, weighted


class SoftmaxNoMax(Cause):
    """Softmax exponentiates without subtracting the maximum: it overflows from 88.7 on in float32.

    llama.cpp#2665, executorch#18407. While nothing overflows, probs are right and only m and l tell.
    """

    id = "softmax_no_max"
    fix = "subtract the row's maximum before exp"
    tell = "scores, m and l"
    fires = ("softmax_no_max", "softmax_no_max@1")
    quiet = ("fa_merge=m0", "attn_scale")

    def applies(self, op):
        return op.kind == "attention"

    def change(self, op, value, model):
        def without_max(scored):
            with np.errstate(over="ignore", invalid="ignore"):
                p = np.exp(scored.scores)
                total = p.sum(-1)
                probs = p / total[..., None]
                results = {"probs": probs, "m": np.zeros_like(total), "l": total}
                return attended(scored) | scored.pick(results) | {"out": weighted(probs, scored.v)}

        return op.wrapped(merged(without_max))
