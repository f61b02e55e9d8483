from ..cause import Cause


class RopeTheta(Cause):
    """The rotary base is not the model's (a default of 10000 where the file says otherwise)."""

    id = "rope_theta"
    fix = "read the rotary base from the model (rope.freq_base)"
    default = 10000.0

    def applies(self, op):
        return op.kind == "rope"

    def change(self, op, value, model):
        return op.with_params(base=value if value != op.params["base"] else 10 * value)

    def candidates(self, op, replay, step, key):
        """The bases met in released models."""
        return [base for base in (1e4, 1e5, 5e5, 1e6, 5e6, 1e7, 1e3) if base != op.params["base"]]
