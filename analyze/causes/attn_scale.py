import numpy as np

from ..cause import Cause


class AttnScale(Cause):
    """The softmax scale is wrong, missing or applied twice (right: 1/sqrt(head_dim), or the model's own).

    llama.cpp#8444 (n_embd/n_head for head_dim), ferrox#40.
    """

    id = "attn_scale"
    fix = "multiply Q·K by 1/sqrt(head_dim) (or the model's attention.scale) exactly once"
    default = 1.0
    continuous = True
    tell = "K and V as they were read from the cache, and the scale that the kernel was given"
    fires = ("attn_scale", "attn_scale=0.5", "attn_scale@1=0.3", "attn_scale@0=0.0625")
    quiet = ("attn_softcap=2", "attn_temp=4", "kv_quant_scale=2")

    def applies(self, op):
        return op.kind == "attention"

    def change(self, op, value, model):
        return op if value == op.params["scale"] else op.with_params(scale=float(value))

    def candidates(self, case):
        """Missing, twice, halfway, and that of the model's width or of its width over heads."""
        scale, model = case.op.params["scale"], case.model
        width = model.hparam("embedding_length")
        by_heads = (width / model.hparam("attention.head_count")) ** -0.5
        return [1.0, scale**2, scale**0.5, width**-0.5, by_heads, 1 / scale]

    def fit(self, case):
        """The scale that fits the recorded scores to q·k best."""
        recorded = case.recorded("scores")
        if recorded is None:
            return []
        right = case.right("scores")
        both = np.isfinite(recorded) & np.isfinite(right)
        power = np.dot(right[both], right[both])
        return [case.op.params["scale"] * np.dot(recorded[both], right[both]) / power] if power else []
