import re
from dataclasses import replace

from ..cause import Cause

LAYER = re.compile(r"blk\.(\d+)\.(\w+)\.weight")


class WeightOther(Cause):
    """A projection reads another weight: of another layer, or of another projection.

    The value is the tensor read, or where it lies: `layer-1`, `layer+1`, `layer0` (every layer reads the
    first one's), or a projection of the same layer such as attn_k.
    """

    id = "weight_other"
    fix = "load blk.N.<projection>.weight of the layer and projection that compute"
    default = "layer+1"
    form = r"\S+"
    tell = "the weight as loaded: trace weights MODEL TENSOR --against DUMP"
    freedom = 1
    fires = ("weight_other@0,q", "weight_other@1,up=layer0", "weight_other@k=attn_v")
    quiet = ("weight_transposed@0,q", "qkv_split@0,k")

    def applies(self, op):
        return op.kind == "linear" and bool(op.weights)

    def change(self, op, value, model):
        name = self._name(op.weights[0], str(value))
        if name == op.weights[0] or name not in model or model.shape(name) != model.shape(op.weights[0]):
            return op
        return replace(op, weights=(name, *op.weights[1:]))

    @staticmethod
    def _name(own, value):
        found = LAYER.fullmatch(own)
        if found is None or value.endswith(".weight"):
            return value
        layer, role = int(found[1]), found[2]
        if value.startswith("layer"):
            step = value.removeprefix("layer")
            layer = layer + int(step) if step[:1] in "+-" else int(step)
        else:
            role = value
        return f"blk.{layer}.{role}.weight"

    def candidates(self, case):
        """Neighbours and projections first, then every weight of the shape in the model."""
        model, own = case.model, case.op.weights[0]
        found = LAYER.fullmatch(own)
        if found is None:
            return []
        roles = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
        named = ["layer-1", "layer+1", "layer0", *(role for role in roles if role != found[2])]
        tried = {self._name(own, value) for value in named}
        alike = [name for name in model.names if name.endswith(f".{found[2]}.weight") and name not in tried]
        return [*named, *alike]
