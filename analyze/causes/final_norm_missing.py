from ..cause import Cause


class FinalNormMissing(Cause):
    """The norm before the output head is skipped, or applied twice.

    Skipped on one inference path only (keys_values#139), or because the hidden states handed over were taken
    before it (speculators#313).
    """

    id = "final_norm_missing"
    fix = "apply output_norm to the last residual stream, once, before the output head"
    default = "skipped"
    choices = ("skipped", "twice")
    fires = ("final_norm_missing", "final_norm_missing=twice")
    quiet = ("norm_gain@final_norm", "norm_plus_one@final_norm")

    def applies(self, op):
        return op.kind == "rms_norm" and op.out.name == "final_norm"

    def change(self, op, value, model):
        def wrap(compute):
            if value == "skipped":
                return lambda x, gain, **params: x.copy()
            return lambda x, gain, **params: compute(compute(x, gain, **params), gain, **params)

        return op.wrapped(wrap)
