"""transformers' own models with the weights of a GGUF that the tests wrote: the second independent reference.

The configuration and the names of the weights are spelled out, here for Llama and in `architectures/` for the
others.  transformers' own loading of a GGUF would take many settings from its defaults (head size, RoPE
scaling), and knows a few architectures only.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
from architecture import ARCHITECTURES, rope
from tensortrace.tracer.gguf import Model

NAMES: dict[str, str | None] = {  # behind blk.N., or at the root
    "token_embd": "embed_tokens",
    "output_norm": "norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": None,
    "ffn_up_exps": None,
    "ffn_down_exps": None,
    "rope_freqs": None,
    "rope_factors_short": None,
    "rope_factors_long": None,
}
WEIGHT = re.compile(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)")


def save(model: Model, folder: Path) -> Path:
    """Writes a folder that transformers loads: the weights of `model`, and what its metadata say."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    made = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config(model)))
    state = {name: torch.tensor(values) for name, values in state_dict(model).items()}
    tied = set() if "output.weight" in model.names else {"lm_head.weight"}
    loaded = made.load_state_dict(state, strict=False)
    assert (set(loaded.missing_keys) - tied, loaded.unexpected_keys) == (set(), [])
    made.save_pretrained(folder)
    return folder


def config(model: Model) -> dict[str, Any]:
    hp, entry = model.hparam, ARCHITECTURES[model.arch]
    common = {
        "model_type": entry.model_type,
        "vocab_size": model.shape("token_embd.weight")[0],
        "hidden_size": hp("embedding_length"),
        "intermediate_size": hp("feed_forward_length"),
        "num_hidden_layers": hp("block_count"),
        "num_attention_heads": hp("attention.head_count"),
        "num_key_value_heads": hp("attention.head_count_kv"),
        "head_dim": hp("attention.key_length"),
        "rms_norm_eps": hp("attention.layer_norm_rms_epsilon"),
        "max_position_embeddings": hp("context_length"),
        "tie_word_embeddings": "output.weight" not in model.names,
        "rope_parameters": rope(model),
        "pad_token_id": None,
    }
    return common | entry.config(model)


def state_dict(model: Model) -> dict[str, np.ndarray]:
    """The weights of `model` under transformers' names, in its order of elements."""
    entry = ARCHITECTURES[model.arch]
    names, (root, layers) = NAMES | dict(entry.names), entry.root
    made: dict[str, np.ndarray] = {}
    for name in model.names:
        match = WEIGHT.fullmatch(name)
        assert match, name
        block, inner, kind = match.groups()
        values = entry.weight(model, name, model.weight(name))
        if inner == "output":
            made["lm_head.weight"] = values
        elif names[inner] is not None:
            place = f"{root}.{layers}.{block}." if block else f"{root}."
            made[f"{place}{names[inner]}.{kind}"] = values
    return made | entry.extra(model)
