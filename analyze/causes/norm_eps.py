import numpy as np

from ..cause import Cause


class NormEps(Cause):
    """The norm's epsilon is not the model's.

    Hard-coded 1e-6 where the model has 1e-5 (llama.cpp#2373, tvm#15856). It shows in rows of small RMS; with
    mean(x²) above 1e-2 not at all in 16 bits.
    """

    id = "norm_eps"
    fix = "read epsilon from the model (attention.layer_norm_rms_epsilon)"
    default = 1e-6
    continuous = True
    tell = "the norm's input and output in float32, or epsilon itself"
    fires = ("norm_eps=1e-3", "norm_eps@0,attn_norm=3e-5", "norm_eps@final_norm=0.02")
    quiet = ("norm_plus_one", "norm_gain@ffn_norm", "norm_precision=float16")

    def applies(self, op):
        return "eps" in op.params

    def change(self, op, value, model):
        return op.with_params(eps=value if abs(value / op.params["eps"] - 1) > 1e-3 else 10 * value)

    def candidates(self, case):
        """The epsilons met in released models."""
        right = case.op.params["eps"]
        return [eps for eps in (1e-6, 1e-5, 1e-8, 1e-12, 1e-3, 0.0) if abs(eps / right - 1) > 1e-3]

    def fit(self, case):
        """(x w / y)² - mean(x²), from the largest element of the rows that are smallest."""
        y = case.recorded()
        if y is None:
            return []
        gain = case.weight()
        x, y = (array.reshape(-1, gain.size) for array in (case.inputs[0], y))  # or over all heads
        if case.op.kind == "layer_norm":
            x, y = x - x.mean(-1, keepdims=True), y - case.weight(1)
        mean_square = (x * x).mean(-1)
        weighted = np.abs(x * gain)
        largest = weighted.argmax(-1)[..., None]  # the best known element of each row
        top, made = (np.take_along_axis(array, largest, -1)[..., 0] for array in (weighted, np.abs(y)))
        with np.errstate(all="ignore"):
            each = (top / made) ** 2 - mean_square
        smallest = each.ravel()[np.argsort(mean_square.ravel())][: max(1, each.size // 4)]
        found = float(np.median(smallest))
        return [found] if np.isfinite(found) and found > 0 else []
