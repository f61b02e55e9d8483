from dataclasses import replace

import numpy as np

from ...tracer.names import Key
from ..cause import Cause


class MoeScaleInput(Cause):
    """The experts' weights multiply what goes into them, in place of what comes out.

    llm-compressor#1907, sglang#7889: Llama 4 has them on the input, others on the output.
    """

    id = "moe_scale_input"
    fix = "multiply each chosen expert's output by its weight, and add up"
    needs = ("moe",)
    fires = ("moe_scale_input", "moe_scale_input@1")
    quiet = ("moe_norm=logits", "activation")

    def applies(self, op):
        return op.kind == "expert_sum" or (op.kind == "glu" and op.out.name == "expert_act")

    def change(self, op, value, model):
        if op.kind == "expert_sum":
            return op.wrapped(lambda compute: lambda x, weights: compute(x, np.ones_like(weights)))

        def wrap(compute):
            def scaled(gate, up, weights, **params):
                return compute(gate * weights[..., None], up * weights[..., None], **params)

            return scaled

        return replace(op, inputs=(*op.inputs, Key(op.out.layer, "expert_weights"))).wrapped(wrap)
