from dataclasses import replace

import numpy as np

from ..cause import Cause


class QkvBias(Cause):
    """The bias of the Q, K and V projections is dropped, or one is added where the model has none."""

    id = "qkv_bias"
    fix = "add attn_q/k/v.bias after the projection exactly when the model has it"
    default = 1.0  # the size of a bias that is added

    def applies(self, op):
        return op.kind == "linear" and op.out.name in ("q", "k", "v")

    def change(self, op, value, model):
        if len(op.weights) > 1:
            return replace(op, weights=op.weights[:1])

        def wrap(compute):
            def with_bias(x, weight, **params):
                bias = value * np.cos(np.arange(weight.shape[0], dtype=weight.dtype))
                return compute(x, weight, bias, **params)

            return with_bias

        return op.wrapped(wrap)
