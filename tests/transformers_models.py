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
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
}
WEIGHT = re.compile(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)")
POST_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
OTHER_NAMES = {
    "gemma2": POST_NORMS,
    "gemma3": POST_NORMS,
    "olmo2": POST_NORMS,
    "gpt-oss": {"post_attention_norm": "post_attention_layernorm", "ffn_gate_inp": "mlp.router"},
    "phi3": {"ffn_up": "mlp.gate_up_proj"},
}
TYPES = {
    "gemma3": "gemma3_text",
    "qwen2moe": "qwen2_moe",
    "qwen3moe": "qwen3_moe",
    "gpt-oss": "gpt_oss",
}
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


GPT2_NAMES = {
    "token_embd": "wte",
    "position_embd": "wpe",
    "output_norm": "ln_f",
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}


def gpt2_state_dict(model: Model) -> dict[str, np.ndarray]:
    """GPT-2 of transformers, whose products have their matrices the other way round."""
    made = {}
    for name in model.names:
        block, inner, kind = WEIGHT.fullmatch(name).groups()
        values = model.weight(name).copy()
        place = f"transformer.h.{block}." if block else "transformer."
        turned = values.T if block and values.ndim == 2 else values
        made[f"{place}{GPT2_NAMES[inner]}.{kind}"] = turned
    return made


def config(model: Model) -> dict[str, Any]:
    hp = model.hparam
    heads = hp("attention.head_count")
    if model.arch == "gpt2":
        return {
            "vocab_size": model.shape("token_embd.weight")[0],
            "n_embd": hp("embedding_length"),
            "n_layer": hp("block_count"),
            "n_head": heads,
            "n_inner": hp("feed_forward_length"),
            "n_positions": hp("context_length"),
            "layer_norm_epsilon": hp("attention.layer_norm_epsilon"),
        }
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


def _experts(model: Model) -> dict[str, Any]:
    hp = model.hparam
    return {
        "num_experts": hp("expert_count"),
        "num_experts_per_tok": hp("expert_used_count"),
        "moe_intermediate_size": hp("expert_feed_forward_length"),
    }


def _llama(model: Model) -> dict[str, Any]:
    hp = model.hparam
    if not (experts := hp("expert_count", 0)):
        return {}
    used = hp("expert_used_count")
    return {"model_type": "mixtral", "num_local_experts": experts, "num_experts_per_tok": used}


def _qwen3moe(model: Model) -> dict[str, Any]:
    return _experts(model) | {"norm_topk_prob": True}


def _qwen2moe(model: Model) -> dict[str, Any]:
    shared = model.hparam("expert_shared_feed_forward_length")
    return _experts(model) | {"norm_topk_prob": False, "shared_expert_intermediate_size": shared}


def _gpt_oss(model: Model) -> dict[str, Any]:
    hp = model.hparam
    return {
        "num_local_experts": hp("expert_count"),
        "num_experts_per_tok": hp("expert_used_count"),
        "intermediate_size": hp("expert_feed_forward_length"),
        "sliding_window": hp("attention.sliding_window"),
        "rope_parameters": rope(model) | {"truncate": False},
    }


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

    made = gpt2_state_dict(model) if model.arch == "gpt2" else llama_like_state_dict(model)
    return {name: torch.tensor(values) for name, values in made.items()}


def llama_like_state_dict(model: Model) -> dict[str, np.ndarray]:
    made: dict[str, np.ndarray] = {}
    names = NAMES | OTHER_NAMES.get(model.arch, {})
    for name in (name for name in model.names if not name.startswith("rope_")):
        values = model.weight(name).copy()
        if name == "output.weight":
            made["lm_head.weight"] = values
            continue
        if name.endswith("attn_sinks.weight"):
            made[f"model.layers.{name.split('.')[1]}.self_attn.sinks"] = values
            continue
        if "_exps." in name:
            continue
        block, inner, kind = WEIGHT.fullmatch(name).groups()
        place = f"layers.{block}." if block else ""
        if model.arch in GEMMA and inner.endswith("norm"):
            values = values - 1
        if model.arch in PERMUTED and inner in ("attn_q", "attn_k"):
            values = half_split(values, model.hparam("attention.key_length"))
        if inner == "ffn_gate_inp_shexp":
            values = values[None]
        made[f"model.{place}{names[inner]}.{kind}"] = values
    return made | experts(model)


def experts(model: Model) -> dict[str, np.ndarray]:
    """transformers has an expert's gate and up in one matrix: one behind the other, in gpt-oss in turns."""
    made = {}
    for name in (name for name in model.names if "ffn_gate_exps." in name):
        block, kind = name.split(".")[1], "" if name.endswith(".weight") else "_bias"
        gate, up, down = (model.weight(name.replace("gate", part)) for part in ("gate", "up", "down"))
        both = np.concatenate([gate, up], axis=1)
        if model.arch == "gpt-oss":
            both = np.stack([gate, up], axis=2).reshape(both.shape)
            both, down = (both, down) if kind else (both.swapaxes(1, 2), down.swapaxes(1, 2))
        place = f"model.layers.{block}.mlp.experts."
        made |= {f"{place}gate_up_proj{kind}": both, f"{place}down_proj{kind}": down}
    return made


def half_split(rows: np.ndarray, head_dim: int) -> np.ndarray:
    """Rows of a Q or K weight in transformers' order: RoPE pairs (i, i + dim/2) instead of (2i, 2i + 1)."""
    pairs = rows.reshape(-1, head_dim // 2, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)
