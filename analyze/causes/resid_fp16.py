import numpy as np

from ..cause import Cause, with_output

MOST = 65504.0


class ResidFp16(Cause):
    """The residual stream is kept in float16 and overflows: infinite from 65504 on, or cut off there.

    vllm#17364, transformers#36832.
    """

    id = "resid_fp16"
    fix = "keep the residual stream in bfloat16 or float32"
    default = "infinite"
    choices = ("infinite", "saturated")
    tell = "the largest element of the stream in each layer, and its type"
    needs = ("loud_ffn",)
    fires = ("resid_fp16@resid_out", "resid_fp16@1,resid_out=saturated")
    quiet = ("act_quant_overflow@ffn_out", "resid_mult@1")

    def applies(self, op):
        return op.kind == "add"

    def change(self, op, value, model):
        def narrow(out, *operands):
            top = np.inf if value == "infinite" else MOST
            return np.where(np.abs(out) > MOST, np.copysign(top, out), out).astype(out.dtype)

        return op.wrapped(with_output(narrow))
