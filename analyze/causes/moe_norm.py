import numpy as np

from ..cause import Cause


class MoeNorm(Cause):
    """The weights of the chosen experts are normalised where the model's are not, or the reverse.

    sglang#35160, mlxcel#391 (softmax over the chosen ones for all); `logits` takes the router's scores as
    they are.
    """

    id = "moe_norm"
    fix = (
        "softmax over all experts, and divide by the sum of the chosen ones only where norm_topk_prob is set"
    )
    default = "other"
    choices = ("other", "logits")
    tell = "the router's scores, the experts chosen and their weights"
    needs = ("moe",)
    fires = ("moe_norm", "moe_norm@1=logits")
    quiet = ("moe_score", "moe_index")

    def applies(self, op):
        return op.kind == "expert_weights"

    def change(self, op, value, model):
        if value == "other":
            return op.with_params(renormalised=not op.params["renormalised"])
        return op.wrapped(
            lambda compute: lambda router, ids, **_: np.take_along_axis(router, ids.astype(np.intp), -1)
        )
