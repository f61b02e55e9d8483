"""GPT-2: layer norms, learned positions, biases, no gate."""

import numpy as np
from architecture import Architecture
from architectures.phi3 import fused
from ggufs import Weights


def gpt2(weights: Weights) -> Weights:
    """Q, K and V as one matrix, learned positions, no gate, and a bias for every norm and product."""
    rng = np.random.default_rng(5)
    made = {name: values for name, values in fused(weights).items() if name != "output.weight"}
    for name in [name for name in made if name.endswith("ffn_up.weight")]:
        made[name] = weights[name]
    for name in [name for name in made if name != "token_embd.weight"]:
        made[name.replace(".weight", ".bias")] = rng.normal(0, 0.2, len(made[name])).astype(np.float32)
    width = made["token_embd.weight"].shape[1]
    return made | {"position_embd.weight": rng.normal(0, 0.5, (512, width)).astype(np.float32)}


def weight(model, name, values):
    """transformers has the matrices of products the other way round."""
    return values.T if name.startswith("blk.") and values.ndim == 2 else values


def config(model):
    hp = model.hparam
    eps, inner = hp("attention.layer_norm_epsilon"), hp("feed_forward_length")
    return {"layer_norm_epsilon": eps, "n_inner": inner, "rope_parameters": None}


def shape(heads, size):
    metadata = {"attention.layer_norm_epsilon": 1e-5}
    return {"heads": heads, "kv_heads": heads, "head_dim": size, "change": gpt2, "metadata": metadata}


ENTRY = Architecture(
    shapes={"one": shape(1, 24), "three": shape(3, 40), "eight": shape(8, 12)},
    faults=("qkv_bias", "causal_mask", "attn_scale"),
    model_type="gpt2",
    names={
        "token_embd": "wte",
        "position_embd": "wpe",
        "output_norm": "ln_f",
        "attn_norm": "ln_1",
        "attn_qkv": "attn.c_attn",
        "attn_output": "attn.c_proj",
        "ffn_norm": "ln_2",
        "ffn_up": "mlp.c_fc",
        "ffn_down": "mlp.c_proj",
    },
    config=config,
    weight=weight,
    root=("transformer", "h"),
)
