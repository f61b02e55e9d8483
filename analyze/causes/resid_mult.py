import numpy as np

from ..cause import Cause


class ResidMult(Cause):
    """What a block adds to the residual stream is multiplied by `value` (0: the block is left out).

    Granite and MiniCPM have a multiplier that ports leave out (CTranslate2#1882).
    """

    id = "resid_mult"
    fix = "add the block's output times the model's residual multiplier (Granite, MiniCPM), else 1"
    default = 0.22
    continuous = True
    fires = ("resid_mult", "resid_mult@1,resid_out=0", "resid_mult@0,resid_mid=2")
    quiet = ("tp_bias", "resid_missing", "norm_placement")

    def applies(self, op):
        return op.kind == "add"

    def change(self, op, value, model):
        def wrap(compute):
            return lambda x, y, **params: compute(x, y * y.dtype.type(value), **params)

        return op.wrapped(wrap)

    def candidates(self, case):
        return [0.0, 2.0, 0.5, 0.22, 0.1]  # 0.22: Granite

    def fit(self, case):
        """The share of the block's output in what was added."""
        recorded = case.recorded()
        if recorded is None:
            return []
        x, y = case.inputs
        return [float(np.vdot(recorded - x, y) / np.vdot(y, y))]

    def says(self, value):
        return f" (a factor of {value:.6g})" if value else " (left out)"
