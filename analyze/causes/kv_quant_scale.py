import numpy as np

from ..cause import Cause, with_inputs


class KvQuantScale(Cause):
    """The scale of quantised keys and values is not applied, or twice: both are `value` times.

    sglang#18818 (no scale when written), vllm#48016 (applied in two places). Scores alone look like a wrong
    softmax scale.
    """

    id = "kv_quant_scale"
    fix = "apply k_scale and v_scale once: when the cache is read, or in the products, not in both"
    default = 2.0
    continuous = True
    tell = "K and V as they were read from the cache"
    fires = ("kv_quant_scale", "kv_quant_scale@1=0.5")
    quiet = ("attn_scale=0.5", "value_scale=2")

    def applies(self, op):
        return op.kind == "attention"

    def change(self, op, value, model):
        def scaled(q, k, v, *rest):
            return (q, k * k.dtype.type(value), v * v.dtype.type(value), *rest)

        return op if value == 1 else op.wrapped(with_inputs(scaled))

    def candidates(self, case):
        return [2.0, 0.5]

    def fit(self, case):
        recorded = case.recorded("scores")
        if recorded is None:
            return [4.0, 0.25]
        right = case.right("scores")
        both = np.isfinite(recorded) & np.isfinite(right)
        return [float(np.dot(recorded[both], right[both]) / np.dot(right[both], right[both]))]

    def says(self, value):
        return f" (a factor of {value:.6g})"
