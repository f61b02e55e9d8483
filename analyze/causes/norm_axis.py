import numpy as np

from ..cause import Cause


class NormAxis(Cause):
    """The norm's mean square is taken over the wrong axis, or is a sum.

    Over `all` of the step's elements, over the `tokens` of each dimension, or a `sum` without the division.
    """

    id = "norm_axis"
    fix = "take the mean of squares over the last axis, for each token by itself"
    default = "all"
    choices = ("all", "tokens", "sum")
    fires = ("norm_axis@attn_norm", "norm_axis=tokens", "norm_axis@1=sum")
    quiet = ("norm_mean@attn_norm", "norm_plus_one")

    def applies(self, op):
        return op.kind == "rms_norm" and op.out.name not in ("q_norm", "k_norm")

    def change(self, op, value, model):
        def wrap(compute):
            def wrong(x, *gain, eps, **params):
                squares = x * x
                mean = {
                    "all": lambda: squares.mean(),
                    "tokens": lambda: squares.mean(0),
                    "sum": lambda: squares.sum(-1, keepdims=True),
                }[value]()
                normed = (x / np.sqrt(mean + eps)).astype(x.dtype)
                return normed * gain[0] if gain else normed

            return wrong

        return op.wrapped(wrap)
