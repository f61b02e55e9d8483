from ..cause import Cause, with_weight


class NormGain(Cause):
    """The norm's gain is not multiplied in, or is twice.

    Met where a fused kernel or an exported graph takes the norm without its weight.
    """

    id = "norm_gain"
    fix = "multiply the normalised row by the norm's weight, once"
    default = "missing"
    choices = ("missing", "twice")
    fires = ("norm_gain@attn_norm", "norm_gain@1=twice", "norm_gain@final_norm")
    quiet = ("norm_plus_one", "norm_missing@attn_norm")

    def applies(self, op):
        return op.kind == "rms_norm" and bool(op.weights)

    def change(self, op, value, model):
        power = 0 if value == "missing" else 2
        return op.wrapped(with_weight(lambda gain: gain**power))
