"""Inside the attention function: scores, probabilities, which keys are seen."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from faults.patching import Break, fault, layers, named, patched
from transformers.models.llama import modeling_llama as llama


def attention(stack: ExitStack, where: list[int], compute: Callable[..., Any]) -> None:
    """`compute(q, k, v, mask, scaling)` -> (attn, probs) in place of eager attention in some layers."""
    right = llama.eager_attention_forward

    def forward(module: Any, q: Any, k: Any, v: Any, mask: Any, scaling: float, **options: Any) -> Any:
        if module.layer_idx not in where:
            return right(module, q, k, v, mask, scaling=scaling, **options)
        groups = module.num_key_value_groups
        k, v = llama.repeat_kv(k, groups), llama.repeat_kv(v, groups)
        attn, probs = compute(q, k, v, mask, scaling)
        return attn.transpose(1, 2).contiguous(), probs

    patched(stack, llama, "eager_attention_forward", forward)


def scored(q: Any, k: Any, mask: Any, scaling: float) -> Any:
    scores = q @ k.transpose(2, 3) * scaling
    return scores if mask is None else scores + mask


def by_scores(change: Callable[..., Any]) -> Break:
    """A fault by `change(scores before the mask)`."""

    def apply(model: Any, stack: ExitStack, where: list[int]) -> None:
        def compute(q: Any, k: Any, v: Any, mask: Any, scaling: float) -> Any:
            scores = change(q @ k.transpose(2, 3) * scaling)
            probs = (scores if mask is None else scores + mask).softmax(-1)
            return probs @ v, probs

        attention(stack, where, compute)

    return apply


def slope(scores: Any) -> Any:
    heads, queries, keys = scores.shape[1:]
    distance = torch.arange(keys)[None] - (torch.arange(queries)[:, None] + keys - queries)
    return scores + 2.0 ** (-8 * torch.arange(1, heads + 1) / heads)[:, None, None] * distance


for _name, _ids, _scores in (
    ("attention_scale_squared", "attn_scale", lambda s: s / 4),
    ("attention_scale_of_width", "attn_scale", lambda s: s / 2),
    ("attention_softcap_2", "attn_softcap", lambda s: 2 * (s / 2).tanh()),
    ("attention_alibi", "alibi", slope),
):
    fault(_ids, "attn", inside=True)(named(_name, by_scores(_scores)))


def by_probs(change: Callable[..., Any]) -> Break:
    """A fault by `change(masked scores) -> probs`."""

    def apply(model: Any, stack: ExitStack, where: list[int]) -> None:
        def compute(q: Any, k: Any, v: Any, mask: Any, scaling: float) -> Any:
            probs = change(scored(q, k, mask, scaling))
            return probs @ v, probs

        attention(stack, where, compute)

    return apply


def off_by_one(scores: Any) -> Any:
    """Softmax with 1 added to the sum."""
    top = scores.amax(-1, keepdim=True)
    p = (scores - top).exp()
    return p / (p.sum(-1, keepdim=True) + (-top).exp())


def padded(scores: Any) -> Any:
    zeros = torch.zeros(*scores.shape[:-1], 5)
    return torch.cat((scores, zeros), -1).softmax(-1)[..., :-5]


def undivided(scores: Any) -> Any:
    return (scores - scores.amax(-1, keepdim=True)).exp()


for _name, _ids, _probs in (
    ("softmax_over_queries", "softmax_axis", lambda s: s.softmax(-2)),
    ("softmax_over_heads", "softmax_axis", lambda s: s.softmax(1).nan_to_num()),
    ("softmax_off_by_one", "attn_sink", off_by_one),
    ("softmax_padded", "pad_keys", padded),
    ("softmax_undivided", "probs_sum", undivided),
):
    fault(_ids, "attn", inside=True)(named(_name, by_probs(_probs)))


@fault("gqa_map", "attn", inside=True)
def heads_tiled(model: Any, stack: ExitStack, where: list[int]) -> None:
    def compute(q: Any, k: Any, v: Any, mask: Any, scaling: float) -> Any:
        k, v = (part[:, ::2].repeat(1, 2, 1, 1) for part in (k, v))
        probs = scored(q, k, mask, scaling).softmax(-1)
        return probs @ v, probs

    attention(stack, where, compute)


@fault("gqa_map", "attn", inside=True)
def heads_of_values_tiled(model: Any, stack: ExitStack, where: list[int]) -> None:
    def compute(q: Any, k: Any, v: Any, mask: Any, scaling: float) -> Any:
        probs = scored(q, k, mask, scaling).softmax(-1)
        return probs @ v[:, ::2].repeat(1, 2, 1, 1), probs

    attention(stack, where, compute)


@fault("stride", "attn", inside=True)
def output_not_transposed(model: Any, stack: ExitStack, where: list[int]) -> None:
    def compute(q: Any, k: Any, v: Any, mask: Any, scaling: float) -> Any:
        probs = scored(q, k, mask, scaling).softmax(-1)
        out = probs @ v
        return out.reshape(1, out.shape[2], out.shape[1], -1).transpose(1, 2), probs

    attention(stack, where, compute)


def online(rescale_sum: bool, rescale_output: bool, tile: int) -> Break:
    """Online softmax over tiles of keys, as a fused kernel computes it, that forgets to rescale."""

    def apply(model: Any, stack: ExitStack, where: list[int]) -> None:
        def compute(q: Any, k: Any, v: Any, mask: Any, scaling: float) -> Any:
            scores = scored(q, k, mask, scaling)
            m = torch.full(scores.shape[:-1], -1e30)
            total, acc = torch.zeros_like(m), torch.zeros_like(q)
            for start in range(0, k.shape[2], tile):
                part = scores[..., start : start + tile]
                top = torch.maximum(m, part.amax(-1))
                p = (part - top[..., None]).exp()
                shrink = (m - top).exp()
                total = total * (shrink if rescale_sum else 1) + p.sum(-1)
                acc = acc * (shrink[..., None] if rescale_output else 1) + p @ v[:, :, start : start + tile]
                m = top
            return acc / total[..., None], scores.softmax(-1)

        attention(stack, where, compute)

    return apply


fault("fa_merge", "attn", inside=True)(named("output_not_rescaled", online(True, False, 8)))
fault("fa_merge", "attn", inside=True)(named("sum_not_rescaled", online(False, True, 16)))


def by_mask(change: Callable[[Any], Any]) -> Break:
    """A fault by `change(distance [query, key]) -> which keys are seen`, in every layer's mask."""

    def apply(model: Any, stack: ExitStack, where: list[int]) -> None:
        for layer in layers(model, where):
            right = layer.self_attn.forward

            def forward(
                hidden_states: Any, attention_mask: Any = None, right: Any = right, **options: Any
            ) -> Any:
                queries = hidden_states.shape[1]
                first = int(options["position_ids"][0, 0])
                keys = first + queries
                distance = (torch.arange(queries) + first)[:, None] - torch.arange(keys)[None]
                mask = torch.zeros(1, 1, queries, keys)
                mask.masked_fill_(~change(distance), torch.finfo(torch.float32).min)
                return right(hidden_states=hidden_states, attention_mask=mask, **options)

            patched(stack, layer.self_attn, "forward", forward)

    return apply


for _name, _ids, _seen in (
    ("mask_missing", "causal_mask", lambda d: d > -(10**6)),
    ("mask_sees_next", "causal_mask", lambda d: d >= -1),
    ("mask_hides_self", "causal_mask", lambda d: (d > 0) | ((d == 0) & (torch.arange(d.shape[1]) == 0))),
    ("mask_window_6", "swa_layers", lambda d: (d >= 0) & (d < 6)),
):
    fault(_ids, "attn")(named(_name, by_mask(_seen)))


@fault("attn_scale", "attn")
def scaling_missing(model: Any, stack: ExitStack, where: list[int]) -> None:
    for layer in layers(model, where):
        patched(stack, layer.self_attn, "scaling", 1.0)
