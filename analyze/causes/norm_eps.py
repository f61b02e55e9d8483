from ..cause import Cause


class NormEps(Cause):
    """The norm's epsilon is not the model's."""

    id = "norm_eps"
    fix = "read epsilon from the model (attention.layer_norm_rms_epsilon)"
    default = 1e-6

    def applies(self, op):
        return "eps" in op.params

    def change(self, op, value, model):
        return op.with_params(eps=value if abs(value / op.params["eps"] - 1) > 1e-3 else 10 * value)

    def candidates(self, op, replay, step, key):
        """The epsilons met in released models."""
        return [eps for eps in (1e-6, 1e-5, 1e-8, 1e-12, 1e-3, 0.0) if abs(eps / op.params["eps"] - 1) > 1e-3]
