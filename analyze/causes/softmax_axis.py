import numpy as np

from ..cause import Cause
from ..reattend import finite, merged, pick, weighted


class SoftmaxAxis(Cause):
    """Softmax is taken over the wrong axis: over queries or heads in place of keys."""

    id = "softmax_axis"
    fix = "take softmax over the keys, the last axis of scores [head, query, key]"
    default = "query"
    choices = ("query", "head")
    fires = ("softmax_axis", "softmax_axis@1=head")
    quiet = ("causal_mask", "probs_sum")

    def applies(self, op):
        return op.kind == "attention"

    def change(self, op, value, model):
        axis = {"query": 1, "head": 0}[value]

        def wrong(scores, v, want, tile):
            p = np.exp(scores - finite(scores.max(axis, keepdims=True)))
            total = p.sum(axis, keepdims=True)
            probs = p / np.where(total > 0, total, 1)
            right = {"scores": scores, "probs": probs}
            return pick(right, want) | {"out": weighted(probs, v)}

        return op.wrapped(merged(wrong))
