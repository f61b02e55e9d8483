"""gpt-oss: sinks, windows in every other layer, experts with biases.  Its YaRN has a test of its own."""

import numpy as np
from architecture import EIGHTH, EXPERTS, WINDOW, Architecture, mixture, rope
from ggufs import Weights


def gpt_oss(weights: Weights) -> Weights:
    """A mixture of experts with biases everywhere, and a sink for each head."""
    rng = np.random.default_rng(4)
    made = mixture(weights)
    for name in list(made):
        if name.endswith(("_exps.weight", "ffn_gate_inp.weight", "attn_output.weight")):
            bias = rng.normal(0, 0.2, made[name].shape[:-1])
            made[name.replace(".weight", ".bias")] = bias.astype(np.float32)
        if name.endswith("attn_q.bias"):
            made[name.replace("attn_q.bias", "attn_sinks.weight")] = rng.normal(0, 1, 8).astype(np.float32)
        if name.endswith("ffn_norm.weight"):
            made[name.replace("ffn_norm", "post_attention_norm")] = made.pop(name)
    return made


def config(model):
    hp = model.hparam
    return {
        "num_local_experts": hp("expert_count"),
        "num_experts_per_tok": hp("expert_used_count"),
        "intermediate_size": hp("expert_feed_forward_length"),
        "sliding_window": hp("attention.sliding_window"),
        "rope_parameters": rope(model) | {"truncate": False},
    }


def extra(model):
    """transformers has gate and up of the experts in turns, and all matrices the other way round."""
    made = {}
    for layer in range(model.hparam("block_count")):
        place = f"model.layers.{layer}."
        made[f"{place}self_attn.sinks"] = model.weight(f"blk.{layer}.attn_sinks.weight")
        for kind, suffix in (("weight", ""), ("bias", "_bias")):
            parts = (model.weight(f"blk.{layer}.ffn_{part}_exps.{kind}") for part in ("gate", "up", "down"))
            gate, up, down = parts
            both = np.stack([gate, up], axis=2).reshape(len(gate), -1, *gate.shape[2:])
            turned = (array if suffix else array.swapaxes(1, 2) for array in (both, down))
            names = (f"{place}mlp.experts.{name}_proj{suffix}" for name in ("gate_up", "down"))
            made |= dict(zip(names, turned))
    return made


SHAPE = EIGHTH | {"tied": False, "bias": True, "change": gpt_oss, "metadata": EXPERTS | WINDOW}
ENTRY = Architecture(
    shapes={"eighth": SHAPE, "fourth": SHAPE | {"kv_heads": 2, "head_dim": 20}},
    faults=("rope_pairing", "qkv_bias", "norm_plus_one@ffn_norm"),
    model_type="gpt_oss",
    names={
        "post_attention_norm": "post_attention_layernorm",
        "ffn_gate_inp": "mlp.router",
        "attn_sinks": None,
    },
    config=config,
    extra=extra,
)
