"""Qwen 2 with experts, their weights not renormalised, and one that all tokens share."""

import numpy as np
from architecture import EVEN, EXPERTS, Architecture, each, expert_config, mixture, stacked_experts
from ggufs import Weights


def with_shared_expert(weights: Weights) -> Weights:
    rng = np.random.default_rng(3)
    made = mixture(weights)
    for name in [
        name for name in weights if name.endswith(("ffn_gate.weight", "ffn_up.weight", "ffn_down.weight"))
    ]:
        made[name.replace(".weight", "_shexp.weight")] = weights[name]
    for name in [name for name in made if name.endswith("ffn_gate_inp.weight")]:
        width = made[name].shape[1]
        made[name.replace("inp", "inp_shexp")] = rng.normal(0, width**-0.5, width).astype(np.float32)
    return made


def config(model):
    shared = model.hparam("expert_shared_feed_forward_length")
    return expert_config(model) | {"norm_topk_prob": False, "shared_expert_intermediate_size": shared}


def weight(model, name, values):
    return values[None] if name.endswith("ffn_gate_inp_shexp.weight") else values


METADATA = EXPERTS | {"expert_shared_feed_forward_length": 96}
ENTRY = Architecture(
    shapes=each(EVEN, tied=False, bias=True, change=with_shared_expert, metadata=METADATA),
    faults=("qkv_bias", "gqa_map", "norm_plus_one@ffn_norm"),
    model_type="qwen2_moe",
    names={
        "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
        "ffn_up_shexp": "mlp.shared_expert.up_proj",
        "ffn_down_shexp": "mlp.shared_expert.down_proj",
        "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    },
    config=config,
    weight=weight,
    extra=stacked_experts,
)
