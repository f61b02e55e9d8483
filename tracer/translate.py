"""Names of other engines in our vocabulary, as tables that can be extended.

Each entry says which of our tensors a name is and how its axes lie (axes.py); what has no entry keeps the
name that it has.  Sources: llama.cpp `src/llama-graph.cpp` and `src/models/*.cpp` of 2024 to today,
transformers `models/llama/modeling_llama.py` and its relatives, TransformerLens `components/`.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from .names import NAMES, Key

Axes = tuple[str, ...]
_ROWS: Axes = ("token", "head*dim")
_HEADS: Axes = ("token", "head", "dim")
_SCORES: Axes = ("head", "query", "key+")  # ggml pads the key axis


@dataclass(frozen=True)
class Target:
    """One of our tensors, and the axes in which the source has it (empty: ours)."""

    key: Key
    axes: Axes = ()


# The weight that an op of llama.cpp reads -> what it computes; a bias is added later and wins.
BY_WEIGHT = {
    "attn_norm": "attn_norm",
    "attn_q": "q",
    "attn_k": "k",
    "attn_v": "v",
    "attn_q_norm": "q_norm",
    "attn_k_norm": "k_norm",
    "attn_output": "attn_out",
    "post_attention_norm": "attn_post_norm",
    "ffn_norm": "ffn_norm",
    "ffn_gate_inp": "router",
    "ffn_gate": "gate",
    "ffn_up": "up",
    "ffn_down": "ffn_out",
    "ffn_gate_exps": "expert_gate",
    "ffn_up_exps": "expert_up",
    "ffn_down_exps": "expert_out",
    "ffn_gate_shexp": "gate",
    "ffn_up_shexp": "up",
    "ffn_down_shexp": "shared_out",
    "post_ffw_norm": "ffn_post_norm",
    "output_norm": "final_norm",
    "output": "logits",
    "token_embd": "embd",
}

# llama.cpp's name of a node, with its op where the name has several -> our name, axes slowest first.
LLAMA_CPP: dict[str, tuple[str, Axes]] = {
    "embd": ("embd", ()),
    "inp_embd": ("embd", ()),
    "inp_scaled": ("embd", ()),
    "attn_norm": ("attn_norm", ()),
    "Qcur": ("q", _ROWS),
    "Kcur": ("k", _ROWS),
    "Vcur": ("v", _ROWS),
    "Qcur RESHAPE": ("q", _HEADS),
    "Kcur RESHAPE": ("k", _HEADS),
    "Vcur RESHAPE": ("v", _HEADS),
    "Qcur VIEW": ("q", _HEADS),  # parts of a fused product
    "Kcur VIEW": ("k", _HEADS),
    "Vcur VIEW": ("v", _HEADS),
    "Qcur_normed": ("q_norm", _HEADS),
    "Kcur_normed": ("k_norm", _HEADS),
    "Qcur ROPE": ("q_rope", _HEADS),
    "Kcur ROPE": ("k_rope", _HEADS),
    "kq_soft_max": ("probs", _SCORES),
    "kq_soft_max_ext": ("probs", _SCORES),
    "kqv": ("attn", ("head", "token", "dim")),
    "kqv_out": ("attn", _ROWS),
    "kqv_merged_cont": ("attn", _ROWS),  # until 2025, when kqv_out was the projection
    "attn_out": ("attn_out", ()),
    "attn_post_norm": ("attn_post_norm", ()),
    "ffn_inp": ("resid_mid", ()),
    "sa_out": ("resid_mid", ()),
    "ffn_norm": ("ffn_norm", ()),
    "ffn_gate": ("gate", ()),
    "ffn_up": ("up", ()),
    "ffn_swiglu": ("act", ()),
    "ffn_geglu": ("act", ()),
    "ffn_reglu": ("act", ()),
    "ffn_gate_par": ("act", ()),
    "ffn_moe_logits": ("router", ()),
    "ffn_moe_topk": ("expert_ids", ()),
    "ffn_moe_weights_norm": ("expert_weights", ()),
    "ffn_moe_gate": ("expert_gate", ()),
    "ffn_moe_up": ("expert_up", ()),
    "ffn_moe_swiglu": ("expert_act", ()),
    "ffn_moe_geglu": ("expert_act", ()),
    "ffn_moe_swiglu_oai": ("expert_act", ()),
    "ffn_moe_down": ("expert_out", ()),
    "ffn_moe_out": ("ffn_out", ()),
    "ffn_out": ("ffn_out", ()),
    "ffn_post_norm": ("ffn_post_norm", ()),
    "l_out": ("resid_out", ()),
    "result_norm": ("final_norm", ()),
    "result_output": ("logits", ()),
}

# A torch module's path behind the layer's number (its output, unless it ends in .input) -> ours.
_BATCH_ROWS: Axes = ("batch", *_ROWS)
_BATCH_HEADS: Axes = ("batch", *_HEADS)
MODULES: dict[str, tuple[str, Axes]] = {
    "input_layernorm": ("attn_norm", ()),
    "self_attn.q_proj": ("q", _BATCH_ROWS),
    "self_attn.k_proj": ("k", _BATCH_ROWS),
    "self_attn.v_proj": ("v", _BATCH_ROWS),
    "self_attn.q_norm": ("q_norm", _BATCH_HEADS),
    "self_attn.k_norm": ("k_norm", _BATCH_HEADS),
    "self_attn.attn": ("attn", _BATCH_ROWS),  # the attention module of vLLM and SGLang
    "self_attn.o_proj.input": ("attn", _BATCH_ROWS),
    "self_attn.o_proj": ("attn_out", ()),
    "post_attention_layernorm": ("ffn_norm", ()),
    "pre_feedforward_layernorm": ("ffn_norm", ()),
    "post_feedforward_layernorm": ("ffn_post_norm", ()),
    "mlp.gate": ("router", ()),
    "mlp.gate_proj": ("gate", ()),
    "mlp.up_proj": ("up", ()),
    "mlp.down_proj.input": ("act", ()),
    "mlp.down_proj": ("ffn_out", ()),
    "": ("resid_out", ()),
}
_SANDWICH = {"post_attention_layernorm": ("attn_post_norm", ())}  # where the block before it has one, too
_GLOBAL_MODULES = {
    "model.embed_tokens": "embd",
    "model.norm": "final_norm",
    "lm_head": "logits",
    "logits_processor": "logits",
}

# TransformerLens: hooks of a block, and those outside.
LENS: dict[str, tuple[str, Axes]] = {
    "ln1.hook_normalized": ("attn_norm", ()),
    "attn.hook_q": ("q", _BATCH_HEADS),
    "attn.hook_k": ("k", _BATCH_HEADS),
    "attn.hook_v": ("v", _BATCH_HEADS),
    "attn.hook_rot_q": ("q_rope", _BATCH_HEADS),
    "attn.hook_rot_k": ("k_rope", _BATCH_HEADS),
    "attn.hook_attn_scores": ("scores", ()),
    "attn.hook_pattern": ("probs", ()),
    "attn.hook_z": ("attn", _BATCH_HEADS),
    "hook_attn_out": ("attn_out", ()),
    "hook_resid_mid": ("resid_mid", ()),
    "ln2.hook_normalized": ("ffn_norm", ()),
    "mlp.hook_pre": ("gate", ()),
    "mlp.hook_pre_linear": ("up", ()),
    "mlp.hook_post": ("act", ()),
    "hook_mlp_out": ("ffn_out", ()),
    "hook_resid_post": ("resid_out", ()),
}
_GLOBAL_LENS = {"hook_embed": "embd", "ln_final.hook_normalized": "final_norm", "unembed": "logits"}

# `q_proj` alone, as people name their files
_SHORT = {path.partition(".")[2]: entry for path, entry in MODULES.items() if path.endswith("_proj")}
_TABLES = (MODULES, LENS, _SHORT, {name: entry for name, entry in LLAMA_CPP.items() if " " not in name})
_GLOBALS = {**_GLOBAL_MODULES, **_GLOBAL_LENS}

_BLOCK = re.compile(r"(?:.*[._])?(?:layers|blocks|blk|layer|h)[._](\d{1,5})(?:[._](.*))?")
_SUFFIX = re.compile(r"(.+?)(?:-|_l|[._]layer_?|_L)(\d{1,5})")
_OUTPUT = re.compile(r"\.(?:output|out|forward)(?:\.0)?$")
_INPUT = re.compile(r"\.(?:inputs?|in)(?:\.0)?$")
_RESERVED = {"catalog", "complete", "generated", "layers", "pieces", "positions", "prompt"}
_RESERVED |= {"recorded_tokens", "steps", "tokens"}  # what else a trace has at its root
_MAX_LAYER, _MAX_NAME = 99_999, 200


def translate_all(names: Iterable[str]) -> dict[str, Target]:
    """What each name of one dump is; names can depend on each other."""
    names = list(names)
    sandwich = any("pre_feedforward_layernorm" in name for name in names)
    return {name: translate(name, sandwich=sandwich) for name in names}


def translate(name: str, layer: int | None = None, *, sandwich: bool = False) -> Target:
    """What `name` is in our vocabulary; itself where no table has it.

    `layer` is what the source says beside the name, else it is read from the name.  `sandwich`: the model has
    norms before and after each block, so that the one after attention is not the feed-forward block's.
    """
    number, rest = (layer, name) if layer is not None or name in NAMES else split_layer(name)
    if not (rest or layer is None) or not _is_layer(number):
        return Target(own_key(number, rest))
    if rest in NAMES:
        return Target(Key(number, rest))
    path = _OUTPUT.sub("", _INPUT.sub(".input", rest))
    if sandwich and path in _SANDWICH:
        ours, axes = _SANDWICH[path]
        return Target(Key(number, ours), axes)
    for table in _TABLES if number is not None else ():
        for form in (rest, path):
            if form in table:
                return Target(Key(number, table[form][0]), table[form][1])
    if number is None and (path in _GLOBALS or path in LLAMA_CPP):
        return Target(Key(None, _GLOBALS.get(path) or LLAMA_CPP[path][0]))
    if rest.lower() in NAMES:  # Q, K, V
        return Target(Key(number, rest.lower()))
    return Target(own_key(number, rest))


def _is_layer(number: int | None) -> bool:
    return number is None or 0 <= number <= _MAX_LAYER


def split_layer(name: str) -> tuple[int | None, str]:
    """`blk.3.q`, `model.layers.3.q`, `q-3` and `q_l3` -> (3, q); no layer where nothing looks like one."""
    if match := _BLOCK.fullmatch(_OUTPUT.sub("", name)):
        return int(match[1]), match[2] or ""
    if match := _SUFFIX.fullmatch(name):
        return int(match[2]), match[1]
    return None, name


def own_key(layer: int | None, name: str) -> Key:
    """A key for a name outside the vocabulary, such that a trace file can hold it."""
    if not _is_layer(layer):
        layer, name = None, f"{name}-{layer}"
    clean = "".join(c if c.isprintable() and c != "/" else "_" for c in name.strip())[:_MAX_NAME]
    if clean in _RESERVED or not clean.strip("."):
        clean += "_"
    return Key(layer, clean)
