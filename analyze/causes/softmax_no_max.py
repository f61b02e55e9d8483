import numpy as np

from ..cause import Cause
from ..reattend import from_scores, merged, pick, weighted


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
        def without_max(scores, v, want, tile):
            with np.errstate(over="ignore", invalid="ignore"):
                p = np.exp(scores)
                total = p.sum(-1)
                probs = p / total[..., None]
                results = {"scores": scores, "probs": probs, "m": np.zeros_like(total), "l": total}
                tiles = from_scores(scores, v, {*want} & {"m_tiles", "l_tiles"}, tile)
                return tiles | pick(results, want) | {"out": weighted(probs, v)}

        return op.wrapped(merged(without_max))
