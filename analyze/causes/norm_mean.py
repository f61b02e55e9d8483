from ..cause import Cause


class NormMean(Cause):
    """The mean is subtracted before the norm: LayerNorm in place of RMSNorm."""

    id = "norm_mean"
    fix = "divide by the root of mean(x²): RMSNorm subtracts no mean"
    fires = ("norm_mean@attn_norm", "norm_mean@final_norm")
    quiet = ("norm_missing@attn_norm", "norm_eps=0.1")

    def applies(self, op):
        return op.kind == "rms_norm"

    def change(self, op, value, model):
        def wrap(compute):
            return lambda x, *gain, **params: compute(x - x.mean(-1, keepdims=True), *gain, **params)

        return op.wrapped(wrap)
