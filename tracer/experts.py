"""A mixture of experts as ops: the router's choice, and a gated feed-forward block for each chosen expert."""

from typing import Any

from .graph import Graph, Key


def experts(g: Graph, h: Key, *, out: str, renormalised: bool, kind: str = "glu", **activation: Any) -> Key:
    """`out` [token, dim] of the chosen experts for the normed input `h`; the weights are GGUF's `ffn_*_exps`.

    `renormalised`: the weights of the chosen experts add up to one.  `kind` and `activation` are those of the
    gated unit.
    """
    hp = g.model.hparam
    scale = hp("expert_weights_scale", 0.0) or None
    router = g.op("router", "linear", h, w=("ffn_gate_inp.weight", "ffn_gate_inp.bias?"))
    ids = g.op("expert_ids", "top_k", router, k=hp("expert_used_count"))
    weights = g.op("expert_weights", "expert_weights", router, ids, renormalised=renormalised, scale=scale)
    gate = g.op("expert_gate", "expert_linear", h, ids, w=("ffn_gate_exps.weight", "ffn_gate_exps.bias?"))
    up = g.op("expert_up", "expert_linear", h, ids, w=("ffn_up_exps.weight", "ffn_up_exps.bias?"))
    a = g.op("expert_act", kind, gate, up, **activation)
    y = g.op("expert_out", "expert_linear", a, ids, w=("ffn_down_exps.weight", "ffn_down_exps.bias?"))
    return g.op(out, "expert_sum", y, weights)
