from ..cause import Cause
from ..reattend import attended, merged, weighted


class ProbsSum(Cause):
    """Probabilities are not divided by their sum."""

    id = "probs_sum"
    fix = "divide exp(score - m), or the output accumulated from it, by l"
    fires = ("probs_sum", "probs_sum@1")
    quiet = ("value_scale=0.5", "attn_sink", "softmax_axis")

    def applies(self, op):
        return op.kind == "attention"

    def change(self, op, value, model):
        def undivided(scored):
            results = {"probs": scored.p, "out": weighted(scored.p, scored.v)}
            return attended(scored) | {name: results[name] for name in {"out", *scored.want} & set(results)}

        return op.wrapped(merged(undivided))
