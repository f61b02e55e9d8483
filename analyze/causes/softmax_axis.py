import numpy as np

from ..cause import Cause
from ..reattend import finite, merged, weighted


class SoftmaxAxis(Cause):
    """Softmax is taken over the wrong axis: over queries or heads in place of keys.

    `head_finite`: over heads, with a finite number as the mask, so that masked keys get 1/heads.
    """

    id = "softmax_axis"
    fix = "take softmax over the keys, the last axis of scores [head, query, key]"
    default = "query"
    choices = ("query", "head", "head_finite")
    fires = ("softmax_axis", "softmax_axis@1=head")
    quiet = ("causal_mask", "probs_sum")

    def applies(self, op):
        return op.kind == "attention"

    def change(self, op, value, model):
        axis = 1 if value == "query" else 0

        def wrong(scored):
            scores = scored.scores
            p = np.exp(scores - finite(scores.max(axis, keepdims=True)))
            total = p.sum(axis, keepdims=True)
            probs = p / np.where(total > 0, total, 1)
            if value == "head_finite":
                probs = np.where(total > 0, probs, 1 / len(p)).astype(p.dtype)
            results = {"scores": scores, "probs": probs}
            return scored.pick(results) | {"out": weighted(probs, scored.v)}

        return op.wrapped(merged(wrong))
