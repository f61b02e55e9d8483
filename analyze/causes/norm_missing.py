from ..cause import Cause


class NormMissing(Cause):
    """A norm is left out: its input goes on as it is.

    The first thing to suspect where Q and K are several times the reference's.
    """

    id = "norm_missing"
    fix = "apply the norm where the architecture has it: before attention, before the feed-forward block"
    fires = ("norm_missing@attn_norm", "norm_missing@1,ffn_norm")
    quiet = ("norm_gain", "norm_mean")

    def applies(self, op):
        return op.kind == "rms_norm" and op.out.layer is not None and op.out.name not in ("q_norm", "k_norm")

    def change(self, op, value, model):
        return op.wrapped(lambda compute: lambda x, *gain, **params: x.copy())
