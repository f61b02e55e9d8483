"""Norms."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from faults.patching import BF16, Break, fault, layers, named, patched
from torch import nn


def norm(change: Callable[[Any, Any, float], Any]) -> Break:
    """A fault by `change(x, weight, eps)` in the norms of some layers."""

    def apply(model: Any, stack: ExitStack, where: list[int]) -> None:
        for layer in layers(model, where):
            for module in (layer.input_layernorm, layer.post_attention_layernorm):
                patched(stack, module, "forward", by_norm(module, change))

    return apply


def by_norm(module: Any, change: Callable[[Any, Any, float], Any]) -> Callable[[Any], Any]:
    return lambda x: change(x, module.weight, module.variance_epsilon)


def unit(x: Any, eps: float) -> Any:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)


NORMS = "attn_norm ffn_norm"
for _name, _ids, _norm in (
    ("norm_eps_0.001", "norm_eps", lambda x, w, e: w * unit(x, 1e-3)),
    ("norm_one_plus_w", "norm_plus_one", lambda x, w, e: (1 + w) * unit(x, e)),
    ("norm_without_gain", "norm_gain", lambda x, w, e: unit(x, e)),
    ("norm_of_centred", "norm_mean", lambda x, w, e: w * unit(x - x.mean(-1, keepdim=True), e)),
    ("norm_layer_norm", "norm_mean", lambda x, w, e: nn.functional.layer_norm(x, w.shape, w, None, e)),
    ("norm_left_out", "norm_missing", lambda x, w, e: x.clone()),
    ("norm_in_bf16", "norm_precision", lambda x, w, e: (w.to(BF16) * unit(x.to(BF16), e)).float()),
    ("norm_by_sum", "norm_axis", lambda x, w, e: w * x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) + e)),
    (
        "norm_over_tokens",
        "norm_axis",
        lambda x, w, e: w * x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + e),
    ),
):
    fault(_ids, NORMS)(named(_name, norm(_norm)))


@fault("norm_wrong_weight", NORMS)
def norms_exchanged(model: Any, stack: ExitStack, where: list[int]) -> None:
    for layer in layers(model, where):
        a, b = layer.input_layernorm.weight, layer.post_attention_layernorm.weight
        a.data, b.data = b.data, a.data


@fault("final_norm_missing", "final_norm")
def final_norm_skipped(model: Any, stack: ExitStack, where: list[int]) -> None:
    patched(stack, model.model.norm, "forward", lambda x: x.clone())
