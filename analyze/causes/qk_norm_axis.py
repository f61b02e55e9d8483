import numpy as np

from ..cause import Cause


class QkNormAxis(Cause):
    """The norm of Q and K is taken over all heads together where it is one of each head, or the reverse.

    Under tensor parallelism a rank sees some of the heads only (sglang#20967, exllamav3#141).
    """

    id = "qk_norm_axis"
    fix = "normalise over the axis that the weight has: head_dim elements, or all heads together"
    fires = ("qk_norm_axis", "qk_norm_axis@0,q_norm")
    quiet = ("qk_norm_missing", "norm_plus_one@q_norm")
    needs = ("qk_norm",)

    def applies(self, op):
        return op.kind == "rms_norm" and op.out.name in ("q_norm", "k_norm")

    def change(self, op, value, model):
        def wrap(compute):
            def wrong(x, gain, *, eps, **params):
                per_head = gain.shape[-1] == x.shape[-1]
                axes = (-2, -1) if per_head else (-1,)
                mean = (x * x).mean(axes, keepdims=True)
                return (x / np.sqrt(mean + eps)).astype(x.dtype) * gain.reshape(-1, x.shape[-1])

            return wrong

        return op.wrapped(wrap)
