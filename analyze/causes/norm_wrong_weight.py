from dataclasses import replace

from ..cause import Cause


class NormWrongWeight(Cause):
    """The norm reads another norm's weight: another layer's, or that of the norm after.

    Megatron-Bridge#4201: the norm before the feed-forward block had loaded another one's tensor. The value is
    the tensor read.
    """

    id = "norm_wrong_weight"
    fix = "load each norm's own tensor: attn_norm, ffn_norm, output_norm"
    default = "output_norm.weight"
    form = r"\S+\.weight"
    fires = ("norm_wrong_weight@0,attn_norm", "norm_wrong_weight@1,ffn_norm=blk.0.ffn_norm.weight")
    quiet = ("norm_gain", "norm_plus_one")

    def applies(self, op):
        return op.kind == "rms_norm" and bool(op.weights)

    def change(self, op, value, model):
        same = value in model and model.shape(value) == model.shape(op.weights[0])
        if not same or value == op.weights[0]:
            return op
        return replace(op, weights=(value, *op.weights[1:]))

    def candidates(self, case):
        size = case.model.shape(case.op.weights[0])
        return [name for name in case.model.names if "norm" in name and case.model.shape(name) == size]
