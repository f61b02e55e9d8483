import numpy as np

from ..cause import Cause


class AttnSoftcap(Cause):
    """The soft-cap of the attention scores is missing, or is put where the model has none (cap `value`).

    sgl-kernel-xpu#491 (stored, never applied), mistral.rs#1930.
    """

    id = "attn_softcap"
    fix = "apply c tanh(score / c) before the mask, exactly where the model has attn_logit_softcapping c"
    default = 50.0
    continuous = True
    fires = ("attn_softcap=2", "attn_softcap@1=1")
    quiet = ("attn_scale=0.2", "alibi")

    def applies(self, op):
        return op.kind == "attention"

    def change(self, op, value, model):
        if value:
            return op.with_params(softcap=float(value)) if value > 0 else op
        return op.with_params(softcap=None) if op.params.get("softcap") else op

    def candidates(self, case):
        return [0.0] if case.op.params.get("softcap") else [50.0, 30.0, 20.0]

    def fit(self, case):
        """Around the largest score seen, and from how much is missing of those that are small against it."""
        recorded = case.recorded("scores")
        if recorded is None:
            return [2.0**power for power in range(7)]
        right = case.right("scores")
        both = np.isfinite(recorded) & np.isfinite(right)
        a, b = recorded[both], right[both]
        cubed = np.dot(b - a, b**3) / max(np.dot(b**3, b**3), 1e-300)
        top = float(np.abs(a).max())
        return [top, 1.4 * top, *([(1 / (3 * cubed)) ** 0.5] if cubed > 0 else [])]

    def says(self, value):
        return f" (cap {value:.6g})" if value else " (missing)"
