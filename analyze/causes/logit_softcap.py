import numpy as np

from ..cause import Cause, with_output


class LogitSoftcap(Cause):
    """The soft-cap of the logits is missing, another, or put where the model has none (cap `value`).

    vllm#52173 (not applied), unsloth-zoo#593 (x tanh(x/c) for c tanh(x/c)). The arg-max stays, so greedy text
    does not show it.
    """

    id = "logit_softcap"
    fix = "apply c tanh(x / c) to the logits exactly where the model has final_logit_softcapping c"
    default = 30.0
    continuous = True
    fires = ("logit_softcap=2", "logit_softcap=5")
    quiet = ("logit_scale=0.5", "attn_softcap=3")

    def applies(self, op):
        return op.out.name == "logits" and op.kind in ("linear", "scale")

    def change(self, op, value, model):
        if op.kind == "scale":
            return op if value < 0 else op.with_params(softcap=float(value) or None)
        if value <= 0:
            return op
        return op.wrapped(with_output(lambda x, *_: (value * np.tanh(x / value)).astype(x.dtype)))

    def candidates(self, case):
        usual = [30.0, 50.0, 20.0]
        return [0.0, *usual] if case.op.params.get("softcap") else usual

    def fit(self, case):
        """c from x - y = x³ / 3c² where x is small against it, or the largest value seen."""
        recorded = case.recorded()
        if recorded is None:
            return []
        capped = case.op.params.get("softcap")
        right = case.inputs[0] * case.op.params.get("factor", 1.0) if capped else case.right()
        top = float(np.abs(recorded).max())
        cubed = np.vdot(right - recorded, right**3) / max(np.vdot(right**3, right**3), 1e-300)
        return [top, 1.5 * top, *([(1 / (3 * cubed)) ** 0.5] if cubed > 0 else [])]

    def says(self, value):
        return f" (cap {value:.6g})" if value else " (missing)"
