from dataclasses import replace

import numpy as np

from ..cause import Cause


class QkvBias(Cause):
    """The bias of a projection counts `value` times (0: dropped), or one is added where the model has none.

    Loaders that read weights only (ANEForge#253), a config default of no bias (candle-vllm#167): every
    token's Q, K or V is off by one vector. Injected into a model without biases, one of size 1 is added.
    """

    id = "qkv_bias"
    fix = "add attn_q/k/v.bias after the projection exactly when the model has it"
    default = 0.0
    fires = ("qkv_bias", "qkv_bias@1,k", "qkv_bias=2")
    quiet = ("weight_other@q=layer+1", "weight_transposed@0,q")
    needs = ("bias",)

    def applies(self, op):
        return op.kind == "linear" and (op.out.name in ("q", "k", "v") or len(op.weights) > 1)

    def change(self, op, value, model):
        has_bias = len(op.weights) > 1
        if isinstance(value, np.ndarray):
            added = value
        elif has_bias:
            added = (value - 1) * model.weight(op.weights[1], np.float64)
        else:
            added = (value or 1.0) * np.cos(np.arange(model.shape(op.weights[0])[0]))

        def wrap(compute):
            def with_bias(x, weight, *bias, **params):
                y = compute(x, weight, *bias, **params)
                return y + added.astype(y.dtype).reshape(y.shape[1:])

            return with_bias

        if has_bias and not isinstance(value, np.ndarray) and value == 0:
            return replace(op, weights=op.weights[:1])
        return op.wrapped(wrap)

    def candidates(self, case):
        return [0.0, 2.0, 3.0, 4.0, 8.0] if len(case.op.weights) > 1 else []

    def fit(self, case):
        """The mean over tokens of what is too much: a bias, where it is all of it."""
        recorded = case.recorded()
        if recorded is None or len(recorded) < 4:
            return []
        return [(recorded - case.right()).mean(0)]

    def says(self, value):
        if isinstance(value, np.ndarray):
            return f" (a vector of norm {np.linalg.norm(value):.4g} is added to every token)"
        return {0.0: " (dropped)"}.get(value, f" (counted {value:g} times)")
