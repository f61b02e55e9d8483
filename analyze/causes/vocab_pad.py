import numpy as np

from ..cause import Cause, with_output


class VocabPad(Cause):
    """Rows of the head from `value` on are padding: their logits are 0 and beat all that are negative.

    mirage#751.
    """

    id = "vocab_pad"
    fix = "leave padded rows out of the arg-max: mask logits from the tokeniser's size on"
    default = 256.0
    fires = ("vocab_pad", "vocab_pad=290")
    quiet = ("tied_head=empty", "logit_scale")

    def applies(self, op):
        return op.out.name == "logits"

    def change(self, op, value, model):
        def pad(logits, *operands):
            logits[:, int(value) :] = 0
            return logits

        return op if value <= 0 else op.wrapped(with_output(pad))

    def candidates(self, case):
        return []

    def fit(self, case):
        recorded = case.recorded()
        if recorded is None:
            return []
        used = np.flatnonzero(recorded.any(0))
        return [float(used[-1] + 1)] if len(used) and used[-1] + 1 < recorded.shape[1] else []

    def says(self, value):
        return f" (from token {value:g} on)"
