import numpy as np

from ..cause import Cause

WIDEST = 8  # keys too many or too few that are tried where neither scores nor probs were recorded


class SwaWidth(Cause):
    """The sliding window is `value` keys too wide (or too narrow).

    W and W + 1 keys are both in use (transformers#39408, vllm#3385): see what the model was trained with.
    """

    id = "swa_width"
    fix = "let a query at position p see keys p - window < j <= p: window keys, its own included"
    default = 1.0
    tell = "more tokens than the window has"
    needs = ("window",)
    fires = ("swa_width", "swa_width=-1", "swa_width@1=3")
    quiet = ("swa_layers", "causal_mask")

    def applies(self, op):
        return op.kind == "attention" and op.params.get("window") is not None

    def change(self, op, value, model):
        return op.with_params(window=op.params["window"] + int(value)) if int(value) else op

    def candidates(self, case):
        return [1.0, -1.0]

    def fit(self, case):
        """The widest support of a row."""
        seen = case.recorded("scores")
        seen = np.isfinite(seen) if seen is not None else case.recorded("probs")
        if seen is None:
            return [float(shift) for shift in range(-WIDEST, WIDEST + 1) if -shift < case.op.params["window"]]
        return [float((seen > 0).sum(-1).max() - case.op.params["window"])]
