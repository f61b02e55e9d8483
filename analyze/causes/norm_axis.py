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
        return op.kind == "rms_norm"

    def change(self, op, value, model):
        if value == "all" and op.out.name in ("q_norm", "k_norm"):
            return op  # qk_norm_axis

        def wrap(compute):
            def wrong(given, gain, *, eps):
                x = given.reshape(len(given), -1, gain.size)  # a gain may span all heads
                squares = x * x
                mean = {
                    "all": lambda: squares.mean(),
                    "tokens": lambda: squares.mean(0),
                    "sum": lambda: squares.sum(-1, keepdims=True),
                }[value]()
                normed = (x / np.sqrt(mean + eps)).astype(x.dtype)
                return (normed * gain).reshape(given.shape)

            return wrong

        return op.wrapped(wrap)
