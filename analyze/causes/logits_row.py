import numpy as np

from ..cause import Cause


class LogitsRow(Cause):
    """Logits are taken from the wrong row: row t holds those of row t - `value`.

    tt-xla#5830 (the last row is padding), tt-forge-onnx#384.
    """

    id = "logits_row"
    fix = "take the logits of the last real token: index by its position, not by the padded length"
    default = 1.0
    fires = ("logits_row", "logits_row=-2")
    quiet = ("logit_scale", "tied_head")

    def applies(self, op):
        return op.out.name == "logits"

    def change(self, op, value, model):
        def wrap(compute):
            return lambda x, *operands, **params: compute(np.roll(x, int(value), 0), *operands, **params)

        return op.wrapped(wrap)

    def candidates(self, case):
        rows = len(case.inputs[0])
        return [float(shift) for shift in (1, -1, 2, -2, 3, -3) if abs(shift) < rows]

    def says(self, value):
        return f" (off by {value:g})"
