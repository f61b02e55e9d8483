from dataclasses import replace

from ...tracer.names import Key
from ..cause import Cause


class NormPlacement(Cause):
    """The norm overwrites the residual stream: attention's output is added to the normed input."""

    id = "norm_placement"
    fix = "keep the residual from before the norm: resid_mid = x + attention(norm(x))"

    def applies(self, op):
        return op.kind == "add" and op.out.name == "resid_mid"

    def change(self, op, value, model):
        return replace(op, inputs=(Key(op.out.layer, "attn_norm"), *op.inputs[1:]))
