import numpy as np

from ..cause import Cause, with_output


class YarnMscale(Cause):
    """YaRN's magnitude is missing or doubled: rotated Q and K are `value` times as long.

    mobius#548 (softmax scale without mscale²), Megatron-LM#1429 (mscale for mscale_all_dim).
    """

    id = "yarn_mscale"
    fix = "multiply cosine and sine by YaRN's attention factor once, exactly where the model has it"
    default = 1.2
    continuous = True
    tell = "q_rope, k_rope and scores, and the softmax scale"
    fires = ("yarn_mscale", "yarn_mscale@1=0.8")
    quiet = ("attn_scale=0.5", "rope_twice")

    def applies(self, op):
        return op.kind == "rope"

    def change(self, op, value, model):
        dims = op.params["dims"]

        def stretch(out, *operands):
            out[..., :dims] *= out.dtype.type(value)
            return out

        return op.wrapped(with_output(stretch))

    def candidates(self, case):
        own = case.op.params.get("magnitude", 1.0)
        return [1 / own, own] if own != 1.0 else []

    def fit(self, case):
        recorded, right = case.recorded(), case.right()
        if recorded is None:
            return [1.2, 0.8]
        dims = case.op.params["dims"]
        a, b = recorded[..., :dims], right[..., :dims]
        return [float(np.vdot(a, b) / np.vdot(b, b))]
