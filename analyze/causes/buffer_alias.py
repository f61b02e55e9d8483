from dataclasses import replace

from ...tracer.names import Key
from ..cause import Cause


class BufferAlias(Cause):
    """The residual is another live tensor: a buffer was used again while it was still needed.

    sglang#28005, local-inference-lab vllm#181. The value is the tensor that is added in its place.
    """

    id = "buffer_alias"
    fix = "give the residual a buffer of its own until it was added; check in-place ops and the allocator"
    default = "attn_out"
    choices = ("attn_out", "attn_norm", "ffn_norm", "resid_mid", "embd", "before")
    tell = "each tensor when it is written and again when it is read"
    freedom = 1
    fires = ("buffer_alias@resid_out", "buffer_alias@1,resid_out=embd")
    quiet = ("resid_missing", "norm_placement", "tp_bias")

    def applies(self, op):
        return op.kind == "add" and op.out.layer is not None

    def change(self, op, value, model):
        layer = op.out.layer
        before = Key(layer - 1, "resid_out") if layer else Key(None, "embd")
        key = {"before": before, "embd": Key(None, "embd")}.get(value, Key(layer, value))
        if key in op.inputs or (value in ("ffn_norm", "resid_mid") and op.out.name == "resid_mid"):
            return op
        return replace(op, inputs=(key, *op.inputs[1:]))
