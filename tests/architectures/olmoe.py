"""OLMoE: experts, and norms of Q and K over all heads (of which llama.cpp takes as many as KV heads)."""

import numpy as np
from architecture import EXPERTS, Architecture, expert_config, mixture, stacked_experts
from ggufs import Weights


def olmoe(weights: Weights) -> Weights:
    rng = np.random.default_rng(6)
    made = mixture(weights)
    for name in [name for name in made if name.endswith(("attn_q.weight", "attn_k.weight"))]:
        gain = rng.normal(1, 0.2, len(made[name]))
        made[name.replace(".weight", "_norm.weight")] = gain.astype(np.float32)
    return made


def shape(heads, size):
    sizes = {"heads": heads, "kv_heads": heads, "head_dim": size, "ff": 40}
    return sizes | {"change": olmoe, "metadata": EXPERTS}


ENTRY = Architecture(
    shapes={"two": shape(2, 36), "three": shape(3, 40), "eight": shape(8, 12)},
    faults=("norm_eps@q_norm=1e-3", "rope_pairing", "norm_plus_one@ffn_norm"),
    model_type="olmoe",
    config=expert_config,
    extra=stacked_experts,
)
