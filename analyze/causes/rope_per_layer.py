from ..cause import Cause


class RopePerLayer(Cause):
    """A layer rotates with the base or scaling of the model's other kind of layer (local for global).

    ferrox#39 (scaling on the sliding layers, too), mlx-vlm#1709 (missing on the global ones).
    """

    id = "rope_per_layer"
    fix = "take base and scaling by the layer's kind: rope.freq_base_swa for sliding layers"
    default = 1e6
    needs = ("local_rope",)
    fires = ("rope_per_layer@0=1000000", "rope_per_layer@1=10000")
    quiet = ("rope_theta@0=5000", "rope_pairing")

    def applies(self, op):
        return op.kind == "rope"

    def change(self, op, value, model):
        return op if value == op.params["base"] else op.with_params(base=value)

    def candidates(self, case):
        """The bases of the other rotated layers."""
        others = {op.params["base"] for op in case.replay.graph.ops if op.kind == "rope"}
        return sorted(others - {case.op.params["base"]})
