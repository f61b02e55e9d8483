from ..cause import Cause


class QkNormMissing(Cause):
    """The norm of Q and K after their projection is skipped.

    On the cached decode path only (aprender#2085), or swallowed by a fusion (tt-mlir#9042).
    """

    id = "qk_norm_missing"
    fix = "apply q_norm and k_norm to every head before RoPE, in prefill and in decode"
    fires = ("qk_norm_missing", "qk_norm_missing@1,k_norm")
    quiet = ("norm_gain@q_norm", "qk_norm_axis")
    needs = ("qk_norm",)

    def applies(self, op):
        return op.kind == "rms_norm" and op.out.name in ("q_norm", "k_norm")

    def change(self, op, value, model):
        return op.wrapped(lambda compute: lambda x, *gain, **params: x.copy())
