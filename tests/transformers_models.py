"""transformers' own models with the weights of a GGUF that the tests wrote: the second independent reference.

The configuration and the names of the weights are spelled out here for each architecture.  transformers' own
loading of a GGUF would take many of them from its defaults (head size, RoPE scaling), and knows a few
architectures only.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
from architectures import LLAMA3
from tensortrace.tracer.gguf import Model

NAMES = {  # behind blk.N., or at the root
    "token_embd": "embed_tokens",
    "output_norm": "norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_qkv": "self_attn.qkv_proj",
}
POST_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
OTHER_NAMES = {
    "gemma2": POST_NORMS,
    "gemma3": POST_NORMS,
    "olmo2": POST_NORMS,
    "phi3": {"ffn_up": "mlp.gate_up_proj"},
}
TYPES = {"gemma3": "gemma3_text"}
PERMUTED = {"llama", "smollm3", "granite"}  # a GGUF of these has the two of a RoPE pair side by side
GEMMA = {"gemma2", "gemma3"}  # GGUF holds 1 + w, transformers adds the 1


def save(model: Model, folder: Path) -> Path:
    """Writes a folder that transformers loads: the weights of `model`, and what its metadata say."""
    from transformers import AutoConfig, AutoModelForCausalLM

    stated = {"model_type": TYPES.get(model.arch, model.arch)} | config(model)
    made = AutoModelForCausalLM.from_config(AutoConfig.for_model(**stated))
    state = state_dict(model)
    tied = set() if "output.weight" in model.names else {"lm_head.weight"}
    loaded = made.load_state_dict(state, strict=False)
    assert (set(loaded.missing_keys) - tied, loaded.unexpected_keys) == (set(), [])
    made.save_pretrained(folder)
    return folder


def config(model: Model) -> dict[str, Any]:
    hp = model.hparam
    heads = hp("attention.head_count")
    common = {
        "vocab_size": model.shape("token_embd.weight")[0],
        "hidden_size": hp("embedding_length"),
        "intermediate_size": hp("feed_forward_length"),
        "num_hidden_layers": hp("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": hp("attention.head_count_kv"),
        "head_dim": hp("attention.key_length"),
        "rms_norm_eps": hp("attention.layer_norm_rms_epsilon"),
        "max_position_embeddings": hp("context_length"),
        "tie_word_embeddings": "output.weight" not in model.names,
        "rope_parameters": rope(model),
        "pad_token_id": None,
    }
    return common | globals().get(f"_{model.arch.replace('-', '_')}", lambda model: {})(model)


def rope(model: Model) -> dict[str, Any]:
    hp = model.hparam
    theta = {"rope_theta": hp("rope.freq_base")}
    kind = hp("rope.scaling.type", "")
    if "rope_freqs.weight" in model:
        return theta | {"rope_type": "llama3"} | LLAMA3
    if not kind:
        return theta | {"rope_type": "default"}
    scaling = {"rope_type": kind, "factor": hp("rope.scaling.factor")}
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = hp("rope.scaling.original_context_length")
    return theta | scaling


def _phi3(model: Model) -> dict[str, Any]:
    hp = model.hparam
    if "rope_factors_long.weight" not in model:
        return {"sliding_window": hp("attention.sliding_window", None)}
    original = hp("rope.scaling.original_context_length")
    return {
        "original_max_position_embeddings": original,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": hp("rope.freq_base"),
            "partial_rotary_factor": hp("rope.dimension_count") / hp("attention.key_length"),
            "original_max_position_embeddings": original,
            "short_factor": model.weight("rope_factors_short.weight").tolist(),
            "long_factor": model.weight("rope_factors_long.weight").tolist(),
        },
    }


def _olmo2(model: Model) -> dict[str, Any]:
    """OLMo 3 is another model to transformers, and a window to llama.cpp."""
    if not (window := model.hparam("attention.sliding_window", 0)):
        return {}
    local = {"rope_type": "default", "rope_theta": model.hparam("rope.freq_base")}
    both = {"full_attention": rope(model), "sliding_attention": local}
    return {"model_type": "olmo3", "sliding_window": window, "rope_parameters": both}


def _granite(model: Model) -> dict[str, Any]:
    hp = model.hparam
    return {
        "embedding_multiplier": hp("embedding_scale"),
        "residual_multiplier": hp("residual_scale"),
        "attention_multiplier": hp("attention.scale"),
        "logits_scaling": hp("logit_scale"),
    }


def _gemma2(model: Model) -> dict[str, Any]:
    hp = model.hparam
    return {
        "query_pre_attn_scalar": hp("attention.key_length"),
        "sliding_window": hp("attention.sliding_window"),
        "attn_logit_softcapping": hp("attn_logit_softcapping"),
        "final_logit_softcapping": hp("final_logit_softcapping"),
    }


def _gemma3(model: Model) -> dict[str, Any]:
    hp = model.hparam
    local = {"rope_type": "default", "rope_theta": hp("rope.freq_base_swa", 10_000.0)}
    return {
        "query_pre_attn_scalar": hp("attention.key_length"),
        "sliding_window": hp("attention.sliding_window"),
        "rope_parameters": {"full_attention": rope(model), "sliding_attention": local},
    }


def state_dict(model: Model) -> dict[str, Any]:
    """The weights of `model` under transformers' names, in its order of elements."""
    import torch

    made: dict[str, np.ndarray] = {}
    names = NAMES | OTHER_NAMES.get(model.arch, {})
    for name in (name for name in model.names if not name.startswith("rope_")):
        values = model.weight(name).copy()
        if name == "output.weight":
            made["lm_head.weight"] = values
            continue
        block, inner, kind = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name).groups()
        place = f"layers.{block}." if block else ""
        if model.arch in GEMMA and inner.endswith("norm"):
            values = values - 1
        if model.arch in PERMUTED and inner in ("attn_q", "attn_k"):
            values = half_split(values, model.hparam("attention.key_length"))
        made[f"model.{place}{names[inner]}.{kind}"] = values
    return {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in made.items()}


def half_split(rows: np.ndarray, head_dim: int) -> np.ndarray:
    """Rows of a Q or K weight in transformers' order: RoPE pairs (i, i + dim/2) instead of (2i, 2i + 1)."""
    pairs = rows.reshape(-1, head_dim // 2, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)
