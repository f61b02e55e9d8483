from ..cause import Cause


class NormPlusOne(Cause):
    """The norm's gain is taken as 1 + w where the file stores w whole (or Gemma's +1 is missing)."""

    id = "norm_plus_one"
    fix = "multiply by the stored gain as it is: GGUF files hold the whole gain, Gemma's included"

    def applies(self, op):
        return op.kind == "rms_norm"

    def change(self, op, value, model):
        def wrap(compute):
            return lambda x, gain, **params: compute(x, gain + 1, **params)

        return op.wrapped(wrap)
