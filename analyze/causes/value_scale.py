import numpy as np

from ..cause import Cause


class ValueScale(Cause):
    """The output of attention has a wrong scale: it is `value` times what it should be.

    Megatron-Bridge#4155 (attention_value_scale read and never used).
    """

    id = "value_scale"
    fix = "apply the model's scale of V (or of attention's output) once; most models have none"
    default = 0.707
    continuous = True
    tell = "V as it was read from the cache"
    fires = ("value_scale", "value_scale@1=2")
    quiet = ("attn_sink", "probs_sum", "kv_quant_scale=2")

    def applies(self, op):
        return op.kind == "attention"

    def change(self, op, value, model):
        def wrap(compute):
            def scaled(*operands, **params):
                results = compute(*operands, **params)
                return results | {"out": results["out"] * results["out"].dtype.type(value)}

            return scaled

        return op.wrapped(wrap)

    def candidates(self, case):
        return [0.5, 2.0]

    def fit(self, case):
        recorded = case.recorded()
        if recorded is None:
            return []
        right = case.right()
        both = np.isfinite(recorded) & np.isfinite(right)
        return [float(np.dot(recorded[both], right[both]) / np.dot(right[both], right[both]))]

    def says(self, value):
        return f" (a factor of {value:.6g})"
