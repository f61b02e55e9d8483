from ..cause import Cause
from ..reattend import from_scores, merged


class ProbsSum(Cause):
    """Probabilities are not divided by their sum."""

    id = "probs_sum"
    fix = "divide exp(score - m), or the output accumulated from it, by l"
    fires = ("probs_sum", "probs_sum@1")
    quiet = ("value_scale=0.5", "attn_sink", "softmax_axis")

    def applies(self, op):
        return op.kind == "attention"

    def change(self, op, value, model):
        def undivided(scores, v, want, tile):
            right = from_scores(scores, v, {*want, "l"}, tile)
            wrong = {"out": right["out"] * right["l"].T[..., None]}
            if "probs" in right:
                wrong["probs"] = right["probs"] * right["l"][..., None]
            return {name: array for name, array in (right | wrong).items() if name == "out" or name in want}

        return op.wrapped(merged(undivided))
