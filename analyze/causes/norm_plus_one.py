from ..cause import Cause, with_weight


class NormPlusOne(Cause):
    """The norm's gain is taken as 1 + w where the file stores w whole (or Gemma's +1 is missing: `value` -1).

    A Gemma port that adds 1 to what the GGUF holds already (mold#1078), or a Llama kernel run on Gemma
    (Liger-Kernel#74).
    """

    id = "norm_plus_one"
    fix = "multiply by the stored gain as it is: GGUF files hold the whole gain, Gemma's included"
    default = 1.0
    fires = ("norm_plus_one", "norm_plus_one@1,ffn_norm", "norm_plus_one=-1", "norm_plus_one@final_norm")
    quiet = ("norm_gain", "norm_eps=0.1", "norm_wrong_weight@attn_norm")

    def applies(self, op):
        return op.kind == "rms_norm"

    def change(self, op, value, model):
        return op.wrapped(with_weight(lambda gain: gain + gain.dtype.type(value)))

    def candidates(self, case):
        return [1.0, -1.0, 2.0]
