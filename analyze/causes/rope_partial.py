from ..cause import Cause


class RopePartial(Cause):
    """The number of rotated elements is wrong: `value` of each head (partial rotary).

    mlx-lm#1698 (a default of one half unknown to the port), vllm#16904 (halved once for each layer).
    """

    id = "rope_partial"
    fix = "rotate rope.dimension_count elements of each head, and pass the others as they are"
    default = 8.0
    fires = ("rope_partial", "rope_partial@1=12")
    quiet = ("rope_theta=1000", "nope_layers", "rope_freq")

    def applies(self, op):
        return op.kind == "rope"

    def change(self, op, value, model):
        return op if int(value) == op.params["dims"] else op.with_params(dims=int(value))

    def candidates(self, case):
        size = case.inputs[0].shape[-1]
        return [float(dims) for dims in range(2, size + 1, 2)]

    def says(self, value):
        return f" ({value:g} elements of each head)"
