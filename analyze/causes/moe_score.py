import numpy as np

from ..cause import Cause


class MoeScore(Cause):
    """The router's scores go through a sigmoid in place of softmax: each by itself, or divided by their sum.

    vllm#12002, transformers#41647: models of both kinds exist.
    """

    id = "moe_score"
    fix = "score experts as the model does: softmax over all of them, or a sigmoid of each"
    default = "sigmoid"
    choices = ("sigmoid", "sigmoid_normalised")
    tell = "the router's scores, the experts chosen and their weights"
    needs = ("moe",)
    fires = ("moe_score", "moe_score@1=sigmoid_normalised")
    quiet = ("moe_norm", "shared_gate")

    def applies(self, op):
        return op.kind == "expert_weights"

    def change(self, op, value, model):
        def wrap(compute):
            def score(router, ids, **params):
                chosen = 1 / (1 + np.exp(-np.take_along_axis(router, ids.astype(np.intp), -1)))
                return chosen if value == "sigmoid" else chosen / chosen.sum(-1, keepdims=True)

            return score

        return op.wrapped(wrap)
