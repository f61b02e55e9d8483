from ..cause import Cause


class TpBias(Cause):
    """Each tensor-parallel rank adds the residual (or the bias) before the ranks' sums are added up.

    text-generation-inference#1036, MinivLLM#80: `value` ranks count it as often.
    """

    id = "tp_bias"
    fix = "add the residual and the bias on rank 0 only, or after the all-reduce"
    default = 2.0
    tell = "each rank's partial sums"
    fires = ("tp_bias", "tp_bias@1,resid_out=4")
    quiet = ("resid_mult=2", "resid_missing")

    def applies(self, op):
        return op.kind == "add"

    def change(self, op, value, model):
        def wrap(compute):
            return lambda x, *rest, **params: compute(x * x.dtype.type(value), *rest, **params)

        return op.wrapped(wrap)

    def candidates(self, case):
        return [2.0, 4.0, 8.0, 3.0]

    def says(self, value):
        return f" (counted {value:g} times)"
