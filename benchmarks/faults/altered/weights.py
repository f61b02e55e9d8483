"""Weights that an engine reads in another layout, from another place, or in part."""

from collections.abc import Callable

import numpy as np
from faults.llama_cpp import Change, add
from ggufs import Weights

Turn = Callable[[np.ndarray], np.ndarray]
SPLIT = "llama qwen2 qwen3 gemma2 granite smollm3 olmo2"  # Q, K and V are weights of their own
PRE = "llama qwen2 qwen3 granite gemma2 gemma3"  # norms before the blocks
HEADS, PAIRS = 6, 10  # of those models: 6 heads of 20


def each(role: str, turn: Turn) -> Change:
    """`turn(weight)` of one role."""

    def change(weights: Weights, where: list[int]) -> Weights:
        names = [f"blk.{layer}.{role}" for layer in where]
        return {name: np.ascontiguousarray(turn(weights[name])) for name in names if name in weights}

    return change


def taken(role: str, source: str, shift: int = 0) -> Change:
    """One role's weight read from another's, or from another layer's."""

    def change(weights: Weights, where: list[int]) -> Weights:
        count = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blk."))
        return {f"blk.{layer}.{role}": weights[f"blk.{(layer + shift) % count}.{source}"] for layer in where}

    return change


def both(*changes: Change) -> Change:
    return lambda weights, where: {
        name: values for change in changes for name, values in change(weights, where).items()
    }


def top(name: str, turn: Turn) -> Change:
    """A weight outside the layers."""
    return lambda weights, where: {name: turn(weights[name])}


def scaled(factor: float) -> Turn:
    return lambda w: w * np.float32(factor)


def plus(shift: float) -> Turn:
    return lambda w: w + np.float32(shift)


def padded(w: np.ndarray) -> np.ndarray:
    return np.where(np.arange(len(w))[:, None] < 290, w, 0)


def halves(w: np.ndarray) -> np.ndarray:
    """Rows of each head from pairs side by side to pairs apart."""
    return w.reshape(-1, PAIRS, 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def side_by_side(w: np.ndarray) -> np.ndarray:
    return w.reshape(-1, 2, PAIRS, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def heads_reversed(w: np.ndarray) -> np.ndarray:
    return w.reshape(HEADS, 2 * PAIRS, -1)[::-1].reshape(w.shape)


def misread(w: np.ndarray) -> np.ndarray:
    return w.reshape(w.shape[::-1]).T


def nibbles(w: np.ndarray) -> np.ndarray:
    """Blocks of 32 with what should be the halves as neighbours."""
    return w.reshape(-1, 2, 16).swapaxes(1, 2).reshape(w.shape)


def without_tail(columns: int) -> Turn:
    return lambda w: np.concatenate([w[:, :-columns], np.zeros_like(w[:, -columns:])], 1)


def first_rank(w: np.ndarray) -> np.ndarray:
    return np.tile(w[: len(w) // 2], (2, 1))


for name, ids, out, role, turn, on in (
    ("q_in_halves", "weight_heads", "q", "attn_q.weight", halves, "llama granite smollm3"),
    ("k_in_halves", "weight_heads", "k", "attn_k.weight", halves, "llama granite smollm3"),
    ("q_side_by_side", "weight_heads", "q", "attn_q.weight", side_by_side, "qwen3 gemma2 gemma3"),
    ("q_heads_reversed", "weight_heads", "q", "attn_q.weight", heads_reversed, "llama qwen3 gemma2"),
    ("q_misread", "weight_transposed", "q", "attn_q.weight", misread, SPLIT),
    ("v_misread", "weight_transposed", "v", "attn_v.weight", misread, "llama qwen3"),
    ("o_misread", "weight_transposed", "attn_out", "attn_output.weight", misread, "llama gemma2 gemma3"),
    ("o_transposed", "weight_transposed", "attn_out", "attn_output.weight", np.transpose, "qwen2 olmo2"),
    ("down_misread", "weight_transposed", "ffn_out", "ffn_down.weight", misread, "qwen2 granite phi3"),
    ("up_nibbles", "dequant_layout", "up", "ffn_up.weight", nibbles, "llama gemma2"),
    ("v_nibbles", "dequant_layout", "v", "attn_v.weight", nibbles, "llama gemma3"),
    ("down_nibbles", "dequant_layout", "ffn_out", "ffn_down.weight", nibbles, "llama qwen3 olmo2 phi3"),
    ("down_tail_lost", "tile_tail", "ffn_out", "ffn_down.weight", without_tail(8), "llama gemma2 phi3 gpt2"),
    ("o_tail_lost", "tile_tail", "attn_out", "attn_output.weight", without_tail(20), "llama qwen3"),
    ("up_of_rank_0", "tp_shard", "up", "ffn_up.weight", first_rank, "llama qwen2 gemma3"),
):
    add(name, ids, out, on, change=each(role, turn), local=True)

for name, out, role, source, shift, on in (
    ("q_of_next_layer", "q", "attn_q.weight", "attn_q.weight", 1, "llama gemma2"),
    ("v_of_last_layer", "v", "attn_v.weight", "attn_v.weight", -1, "llama qwen2"),
    ("k_reads_v", "k", "attn_k.weight", "attn_v.weight", 0, "llama qwen3"),
    ("gate_reads_up", "gate", "ffn_gate.weight", "ffn_up.weight", 0, "llama gemma2 olmo2"),
    ("down_of_next_layer", "ffn_out", "ffn_down.weight", "ffn_down.weight", 1, "llama granite gpt2"),
):
    add(name, "weight_other", out, on, change=taken(role, source, shift), local=True)
exchanged = both(taken("ffn_gate.weight", "ffn_up.weight"), taken("ffn_up.weight", "ffn_gate.weight"))
add(
    "gate_and_up_exchanged",
    "weight_other gate_up_swap",
    "gate up",
    "llama qwen2",
    change=exchanged,
    local=True,
)
swapped = both(taken("attn_k.weight", "attn_v.weight"), taken("attn_v.weight", "attn_k.weight"))
add("k_and_v_exchanged", "weight_other", "k v", "llama gemma3", change=swapped, local=True)

BIASES = ("attn_q.bias", "attn_k.bias", "attn_v.bias")
for name, turn in (("dropped", np.zeros_like), ("doubled", lambda b: 2 * b), ("negated", lambda b: -b)):
    change = both(*(each(role, turn) for role in BIASES))
    add(f"biases_{name}", "qkv_bias", "q k v", "qwen2 qwen2moe gpt-oss", change=change, local=True)
change = both(taken("attn_k.bias", "attn_v.bias"))
add("bias_of_v_on_k", "qkv_bias weight_other", "k", "qwen2", change=change, local=True)

for role, out in (("attn_norm", "attn_norm"), ("ffn_norm", "ffn_norm")):
    for shift in (1.0, -1.0):
        change = each(f"{role}.weight", plus(shift))
        add(f"{role}_{shift:+.0f}", "norm_plus_one", out, PRE, change=change, local=True)
    change = each(f"{role}.weight", np.ones_like)
    add(f"{role}_without_gain", "norm_gain", out, "llama gemma3", change=change, local=True)
for role, out in (("attn_q_norm", "q_norm"), ("attn_k_norm", "k_norm")):
    change = each(f"{role}.weight", plus(1))
    add(f"{role}_plus_one", "norm_plus_one", out, "qwen3 gemma3 olmo2", change=change, local=True)
change = top("output_norm.weight", plus(1))
add("final_norm_plus_one", "norm_plus_one", "final_norm", "llama gemma2 olmo2", change=change)

for factor in (96**0.5, 0.25):
    change = top("token_embd.weight", scaled(factor))
    add(f"embedding_times_{factor:.3g}", "embed_scale", "embd", "llama qwen2 granite", change=change)
change = top("token_embd.weight", lambda w: np.roll(w, -1, 0))
add("embedding_of_next_id", "embed_offset", "embd", "llama qwen2", change=change)
add("head_is_embedding", "tied_head", "logits raw_logits", "llama qwen3 granite", without=("output.weight",))
add("head_empty", "tied_head", "logits", "llama olmo2", change=top("output.weight", np.zeros_like))
add("head_padded", "vocab_pad", "logits", "llama", change=top("output.weight", padded))
no_sinks = each("attn_sinks.weight", lambda w: np.full_like(w, -1e4))
add("sinks_dropped", "attn_sink", "attn", "gpt-oss", change=no_sinks, local=True)
