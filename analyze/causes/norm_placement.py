from dataclasses import replace

from ...tracer.names import Key
from ..cause import Cause


class NormPlacement(Cause):
    """Norm and residual are in the wrong order.

    The norm overwrites the residual stream (`normed`: attention's output is added to the normed input,
    OLMo#680, flax#4567), or the feed-forward block reads the layer's input beside attention (`parallel`).
    """

    id = "norm_placement"
    fix = "keep the residual from before the norm: x = x + attention(norm(x)), then x + ffn(norm(x))"
    default = "normed"
    choices = ("normed", "parallel")
    fires = ("norm_placement", "norm_placement@1,resid_out", "norm_placement=parallel")
    quiet = ("resid_mult=0.5", "norm_missing@ffn_norm")

    def applies(self, op):
        is_sum = op.kind == "add" and op.out.name in ("resid_mid", "resid_out")
        return is_sum or op.out.name == "ffn_norm"

    def change(self, op, value, model):
        layer = op.out.layer
        if value == "normed" and op.kind == "add":
            normed = "attn_norm" if op.out.name == "resid_mid" else "ffn_norm"
            return replace(op, inputs=(Key(layer, normed), *op.inputs[1:]))
        if value == "parallel" and op.kind != "add":
            before = Key(layer - 1, "resid_out") if layer else Key(None, "embd")
            return replace(op, inputs=(before, *op.inputs[1:]))
        return op
