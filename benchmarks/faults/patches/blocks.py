"""The feed-forward block and the residual stream."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from faults.patching import Break, fault, layers, named, patched
from torch import nn


def mlp(change: Callable[[Any, Any], Any]) -> Break:
    """A fault by `change(gate, up)`."""

    def apply(model: Any, stack: ExitStack, where: list[int]) -> None:
        for layer in layers(model, where):
            block = layer.mlp
            forward = lambda x, m=block: m.down_proj(change(m.gate_proj(x), m.up_proj(x)))  # noqa: E731
            patched(stack, block, "forward", forward)

    return apply


F = nn.functional
for _name, _ids, _act in (
    ("gelu_for_silu", "activation", lambda g, u: F.gelu(g) * u),
    ("tanh_gelu_for_silu", "activation", lambda g, u: F.gelu(g, approximate="tanh") * u),
    ("relu_for_silu", "activation", lambda g, u: F.relu(g) * u),
    ("no_activation", "activation", lambda g, u: g * u),
    ("activation_of_up", "gate_up_swap", lambda g, u: g * F.silu(u)),
    ("activation_overflows", "act_overflow", lambda g, u: torch.where(g.abs() > 2, torch.nan, F.silu(g) * u)),
):
    fault(_ids, "act")(named(_name, mlp(_act)))


def block(change: Callable[..., Any]) -> Break:
    """A fault by `change(x, layer, attend)` in place of a decoder layer's forward."""

    def apply(model: Any, stack: ExitStack, where: list[int]) -> None:
        for layer in layers(model, where):

            def forward(hidden_states: Any, layer: Any = layer, **options: Any) -> Any:
                def attend(x: Any) -> Any:
                    return layer.self_attn(hidden_states=x, **options)[0]

                return change(hidden_states, layer, attend)

            patched(stack, layer, "forward", forward)

    return apply


def attended(x: Any, layer: Any, attend: Any) -> Any:
    return x + attend(layer.input_layernorm(x))


def fed(x: Any, layer: Any) -> Any:
    return layer.mlp(layer.post_attention_layernorm(x))


@fault("resid_missing", "resid_mid")
def residual_lost(model: Any, stack: ExitStack, where: list[int]) -> None:
    def change(x: Any, layer: Any, attend: Any) -> Any:
        x = attend(layer.input_layernorm(x))
        return x + fed(x, layer)

    block(change)(model, stack, where)


@fault("resid_missing", "resid_out")
def second_residual_lost(model: Any, stack: ExitStack, where: list[int]) -> None:
    block(lambda x, layer, attend: fed(attended(x, layer, attend), layer))(model, stack, where)


@fault("norm_placement", "resid_mid")
def residual_of_normed(model: Any, stack: ExitStack, where: list[int]) -> None:
    def change(x: Any, layer: Any, attend: Any) -> Any:
        x = layer.input_layernorm(x)
        x = x + attend(x)
        return x + fed(x, layer)

    block(change)(model, stack, where)


@fault("tp_bias", "resid_mid")
def residual_of_each_rank(model: Any, stack: ExitStack, where: list[int]) -> None:
    def change(x: Any, layer: Any, attend: Any) -> Any:
        x = x + attended(x, layer, attend)
        return x + fed(x, layer)

    block(change)(model, stack, where)


@fault("resid_mult", "resid_mid")
def block_multiplied(model: Any, stack: ExitStack, where: list[int]) -> None:
    def change(x: Any, layer: Any, attend: Any) -> Any:
        x = x + 0.22 * attend(layer.input_layernorm(x))
        return x + fed(x, layer)

    block(change)(model, stack, where)


@fault("graph_stale", "ffn_out")
def feed_forward_replayed(model: Any, stack: ExitStack, where: list[int]) -> None:
    for layer in layers(model, where):
        kept: list[Any] = []
        right = layer.mlp.forward

        def forward(x: Any, kept: list[Any] = kept, right: Any = right) -> Any:
            out = right(x)
            if x.shape[1] == 1:
                kept.append(out)
                return kept[0]
            return out

        patched(stack, layer.mlp, "forward", forward)
