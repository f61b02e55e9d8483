import numpy as np

from ..cause import Cause


class SwaLayers(Cause):
    """The sliding window is on the wrong layers: on one that should see all keys, or on none.

    Layer numbers counted from 1 (Megatron-Bridge#4875), a window on all layers (vllm#21863). `value` is the
    window put where the model has none.
    """

    id = "swa_layers"
    fix = "apply the window to the layers that the model says, and no mask but the causal one to the others"
    default = 8.0
    tell = "more tokens than the window has"
    fires = ("swa_layers", "swa_layers@1=5")
    quiet = ("causal_mask", "causal_mask=self")

    def applies(self, op):
        return op.kind == "attention"

    def change(self, op, value, model):
        if op.params.get("window") is not None:
            return op.with_params(window=None)
        return op.with_params(window=int(value)) if value >= 1 else op

    def candidates(self, case):
        if case.op.params.get("window") is not None:
            return [0.0]
        others = (op.params.get("window") for op in case.replay.graph.ops if op.kind == "attention")
        return sorted({float(window) for window in others if window})

    def fit(self, case):
        """The widest support of a row, where the last row does not see all keys; or the first that is off."""
        seen = case.recorded("scores")
        seen = np.isfinite(seen) if seen is not None else case.recorded("probs")
        if seen is None:
            return [float(first)] if (first := case.first_wrong()) else []
        widest = int((seen > 0).sum(-1).max())
        return [float(widest)] if widest < seen.shape[-1] else []

    def says(self, value):
        return f" (a window of {value:g})" if value else " (no window where the model has one)"
