import numpy as np

from ..cause import Cause


class Fp16Accum(Cause):
    """A matrix product is added up in float16: it overflows from 65504 on and loses bits before.

    llama.cpp#13101 (ffn_down), llama.cpp#13607; often only above a batch size, where another kernel is used.
    """

    id = "fp16_accum"
    fix = "accumulate products in float32 (ggml: GGML_PREC_F32)"
    tell = "the accumulator's type, and the largest |y| of the projection"
    freedom = 1
    fires = ("fp16_accum@ffn_out",)
    quiet = ("dequant_layout@ffn_out", "resid_fp16")
    needs = ("loud_ffn",)

    def applies(self, op):
        return op.kind == "linear" and op.out.layer is not None

    def change(self, op, value, model):
        def wrap(compute):
            def half(x, weight, *bias, **params):
                rows = x.reshape(len(x), -1)
                total = np.zeros((len(x), len(weight)), np.float16)
                with np.errstate(over="ignore", invalid="ignore"):
                    for k in range(rows.shape[1]):
                        total = (total + rows[:, k, None] * weight[None, :, k]).astype(np.float16)
                y = compute(x, weight, *bias, **params)
                return total.astype(y.dtype).reshape(y.shape)

            return half

        return op.wrapped(wrap)
