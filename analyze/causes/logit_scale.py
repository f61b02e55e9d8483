import numpy as np

from ..cause import Cause, with_output


class LogitScale(Cause):
    """The logits' multiplier is missing or doubled, or divides for multiplies: they are `value` times.

    sonar#1054, unsloth#1218 (Granite divides by 16, Cohere multiplies by 0.125). Greedy text does not
    show it.
    """

    id = "logit_scale"
    fix = "apply the model's logit scale once, as a factor or a divisor as the architecture has it"
    default = 0.5
    fires = ("logit_scale", "logit_scale=16")
    quiet = ("logit_softcap=3", "norm_plus_one@final_norm")

    def applies(self, op):
        return op.out.name == "logits"

    def change(self, op, value, model):
        return op.wrapped(with_output(lambda x, *_: x * x.dtype.type(value)))

    def candidates(self, case):
        return [2.0, 0.5, 16.0, 1 / 16, 8.0, 0.125]

    def fit(self, case):
        recorded, right = case.recorded(), case.right()
        return [] if recorded is None else [np.vdot(recorded, right) / np.vdot(right, right)]

    def says(self, value):
        return f" (a factor of {value:.6g})"
