import numpy as np

from ..cause import Cause

BLOCK, MOST = 32, 65504.0


class ActQuantOverflow(Cause):
    """Activations are quantised in blocks whose sum is kept in float16, and it overflows: the token is NaN.

    llama.cpp#21652, ik_llama.cpp#292 (Q8_1): all outputs of a token whose block of 32 sums to more than
    65504, while its inputs are finite.
    """

    id = "act_quant_overflow"
    fix = "keep the sum of an activation block in float32, or scale the activations down"
    tell = "the input's largest element, the kernel and the type it quantises activations to"
    fires = ("act_quant_overflow@ffn_out",)
    quiet = ("resid_fp16",)
    needs = ("loud_ffn",)

    def applies(self, op):
        return op.kind == "linear"

    def change(self, op, value, model):
        def wrap(compute):
            def overflowing(x, *operands, **params):
                y = compute(x, *operands, **params)
                rows = x.reshape(len(x), -1)
                whole = rows[:, : rows.shape[1] // BLOCK * BLOCK].reshape(len(x), -1, BLOCK)
                sums = np.abs(whole.sum(-1)).max(-1)
                y[~(sums <= MOST)] = np.nan
                return y

            return overflowing

        return op.wrapped(wrap)
