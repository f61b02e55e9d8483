"""Weights."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from faults.patching import LAYERS, Break, fault, layers, named
from torch import nn


def weight(projection: str, change: Callable[[Any], Any]) -> Break:
    """A fault by `change(weight)` of one projection in some layers."""

    def apply(model: Any, stack: ExitStack, where: list[int]) -> None:
        for layer in layers(model, where):
            parameter = layer.get_submodule(projection).weight
            parameter.data = change(parameter.data).contiguous().clone()

    return apply


def nibbles(w: Any) -> Any:
    """Blocks of 32 with what should be the halves as neighbours."""
    return w.reshape(-1, 2, 16).transpose(1, 2).reshape(w.shape)


def tail(w: Any) -> Any:
    w = w.clone()
    w[:, -8:] = 0
    return w


def heads_reversed(w: Any) -> Any:
    return w.reshape(4, 16, -1).flip(0).reshape(w.shape)


def not_permuted(w: Any) -> Any:
    """Rows of heads of 16 in GGUF's order where transformers wants halves."""
    return w.reshape(-1, 2, 8, w.shape[1]).transpose(1, 2).reshape(w.shape)


for _name, _ids, _out, _projection, _weight in (
    ("o_transposed", "weight_transposed", "attn_out", "self_attn.o_proj", lambda w: w.T),
    ("v_misread", "weight_transposed", "v", "self_attn.v_proj", lambda w: w.reshape(w.shape[::-1]).T),
    ("q_heads_reversed", "weight_heads", "q", "self_attn.q_proj", heads_reversed),
    ("k_not_permuted", "weight_heads", "k", "self_attn.k_proj", not_permuted),
    ("up_nibbles", "dequant_layout", "up", "mlp.up_proj", nibbles),
    ("q_nibbles", "dequant_layout", "q", "self_attn.q_proj", nibbles),
    ("down_tail_lost", "tile_tail", "ffn_out", "mlp.down_proj", tail),
    ("up_of_rank_0", "tp_shard", "up", "mlp.up_proj", lambda w: w[: len(w) // 2].repeat(2, 1)),
):
    fault(_ids, _out)(named(_name, weight(_projection, _weight)))


def other(projection: str, source: str, shift: int = 0) -> Break:
    """A fault by reading another projection's weight."""

    def apply(model: Any, stack: ExitStack, where: list[int]) -> None:
        taken = [
            model.model.layers[(index + shift) % LAYERS].get_submodule(source).weight.data.clone()
            for index in where
        ]
        for layer, data in zip(layers(model, where), taken):
            layer.get_submodule(projection).weight.data = data

    return apply


for _name, _out, _projection, _source, _shift in (
    ("v_of_next_layer", "v", "self_attn.v_proj", "self_attn.v_proj", 1),
    ("q_of_next_layer", "q", "self_attn.q_proj", "self_attn.q_proj", 1),
    ("gate_reads_up", "gate", "mlp.gate_proj", "mlp.up_proj", 0),
    ("down_of_last_layer", "ffn_out", "mlp.down_proj", "mlp.down_proj", -1),
):
    fault("weight_other", _out)(named(_name, other(_projection, _source, _shift)))


@fault("qkv_bias", "q")
def q_bias_added(model: Any, stack: ExitStack, where: list[int]) -> None:
    for layer in layers(model, where):
        layer.self_attn.q_proj.bias = nn.Parameter(torch.linspace(-1, 1, 64), requires_grad=False)
