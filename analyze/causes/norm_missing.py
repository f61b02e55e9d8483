from ..cause import Cause


class NormMissing(Cause):
    """A norm is left out: its input goes on as it is.

    The first thing to suspect where Q and K are several times the reference's. `undivided`: its gain is
    applied, but nothing is divided by the root of the mean square.
    """

    id = "norm_missing"
    fix = "apply the norm where the architecture has it: before attention, before the feed-forward block"
    default = "skipped"
    choices = ("skipped", "undivided")
    fires = ("norm_missing@attn_norm", "norm_missing@1,ffn_norm", "norm_missing@0=undivided")
    quiet = ("norm_gain", "norm_mean")

    def applies(self, op):
        return op.kind == "rms_norm" and op.out.layer is not None

    def change(self, op, value, model):
        if value == "undivided":
            return op.wrapped(lambda compute: _times_gain)
        if op.out.name in ("q_norm", "k_norm"):
            return op  # qk_norm_missing
        return op.wrapped(lambda compute: lambda x, *gain, **params: x.copy())


def _times_gain(x, gain, **params):
    return (x.reshape(-1, gain.size) * gain).reshape(x.shape)
