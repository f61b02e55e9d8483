"""Faults put into transformers from outside: patched functions, modules and weights, none through our ops.

Each is a function of the loaded model that breaks it and gives back how to mend it (patches end with the
run).  What the faulty model does is recorded by the torch engine, whose scores, m and l are computed beside
attention: faults inside the attention function are recorded without them, as a fused kernel would be.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from causes import NEW, TILE, TOKENS, Result, judge
from ggufs import write_gguf
from recording import header, record_trace
from tensortrace.tracer.architecture import build_graph
from tensortrace.tracer.engines import torch as engine
from tensortrace.tracer.gguf import Model
from tensortrace.tracer.names import Key
from tensortrace.tracer.record import Request, record
from tensortrace.tracer.selection import Selection
from tensortrace.tracer.trace import Trace
from torch import nn
from transformers.models.llama import modeling_llama as llama

LAYERS = 3
INSIDE = "scores,m,l"  # what the torch engine cannot see of a patched attention function
Break = Callable[[Any, ExitStack, list[int]], None]


@dataclass(frozen=True)
class Fault:
    """One way to break a model: the ids that name it, the tensors that the faulty op computes."""

    ids: set[str]
    names: str
    apply: Break
    inside: bool = False


FAULTS: dict[str, Fault] = {}


def fault(ids: str, names: str, inside: bool = False) -> Callable[[Break], Break]:
    def add(function: Break) -> Break:
        FAULTS[function.__name__] = Fault(set(ids.split()), names, function, inside)
        return function

    return add


def faults(folder: Path, quick: bool) -> Iterator[Result]:
    """Every fault in all layers and, where it can be, in the middle one alone."""
    gguf = Model(write_gguf(folder / "foreign.gguf", layers=LAYERS, seed=11))
    ids = np.random.default_rng(2).integers(97, 250, TOKENS).tolist()
    record_trace(gguf, folder / "reference.h5", ids, n_new=NEW, tile=TILE)
    reference = Trace(folder / "reference.h5")
    for name, each in list(FAULTS.items())[:: 4 if quick else 1]:
        for where in (list(range(LAYERS)), [1]):
            path = folder / "foreign.h5"
            path.unlink(missing_ok=True)
            _record(gguf, each, where, ids, path)
            changed = {Key(layer, out) for out in each.names.split() for layer in (*where, None)}
            with Trace(path) as ours:
                place = "all layers" if len(where) > 1 else f"layer {where[0]}"
                yield judge(
                    "foreign: transformers", f"{name}, {place}", each.ids, changed, (ours, reference), gguf
                )


def _record(gguf: Model, each: Fault, where: list[int], ids: list[int], path: Path) -> None:
    made = engine.Engine(build_graph(gguf), gguf)
    hidden = INSIDE.split(",") if each.inside else []
    names = {key.name for key in made.available()} - set(hidden)
    request = Request(ids, n_new=NEW, selection=Selection(tensors=",".join(sorted(names))))
    with ExitStack() as stack, torch.no_grad():
        each.apply(made._model, stack, where)
        record(made, request, path, header(gguf, **made.settings))


def patched(stack: ExitStack, target: Any, name: str, value: Any) -> None:
    stack.enter_context(patch.object(target, name, value))


def layers(model: Any, where: list[int]) -> list[Any]:
    return [model.model.layers[index] for index in where]


# ---- RoPE


def rotation(stack: ExitStack, model: Any, where: list[int], rotate: Callable[..., Any]) -> None:
    """`rotate(q, k, cos, sin)` in place of apply_rotary_pos_emb in some layers."""
    right, count = llama.apply_rotary_pos_emb, [0]

    def apply(q: Any, k: Any, cos: Any, sin: Any, **options: Any) -> Any:
        layer, count[0] = count[0] % LAYERS, count[0] + 1
        return (rotate if layer in where else right)(q, k, cos, sin)

    patched(stack, llama, "apply_rotary_pos_emb", apply)


def turn(x: Any, cos: Any, sin: Any) -> Any:
    return x * cos[:, None] + llama.rotate_half(x) * sin[:, None]


def angles(change: Callable[[Any, Any], Any]) -> Break:
    """A fault by `change(position_ids, inv_freq)` -> angles [batch, token, pair]."""

    def apply(model: Any, stack: ExitStack, where: list[int]) -> None:
        positions: list[Any] = []
        rotary = model.model.rotary_emb
        right = rotary.forward

        def forward(x: Any, position_ids: Any) -> Any:
            positions[:] = [position_ids]
            return right(x, position_ids)

        patched(stack, rotary, "forward", forward)

        def rotate(q: Any, k: Any, cos: Any, sin: Any) -> Any:
            wrong = change(positions[0].float(), rotary.inv_freq)
            both = torch.cat((wrong, wrong), -1)
            return turn(q, both.cos(), both.sin()), turn(k, both.cos(), both.sin())

        rotation(stack, model, where, rotate)

    return apply


def named(name: str, function: Break) -> Break:
    function.__name__ = name
    return function


def outer(positions: Any, freqs: Any) -> Any:
    return positions[..., None] * freqs


def frequencies(base: float, count: int, step: int = 2) -> Any:
    return base ** (-torch.arange(0, step * count, step).float() / (2 * count))


ROPE = "q_rope k_rope"
BF16 = torch.bfloat16
for _name, _ids, _change in (
    ("rope_base_500000", "rope_theta", lambda p, f: outer(p, frequencies(5e5, len(f)))),
    ("rope_base_1000", "rope_theta", lambda p, f: outer(p, frequencies(1e3, len(f)))),
    ("rope_base_33333", "rope_theta", lambda p, f: outer(p, frequencies(33333, len(f)))),
    ("rope_linear_scaling_4", "rope_scaling", lambda p, f: outer(p, f / 4)),
    ("rope_wrong_way_round", "rope_kernel", lambda p, f: -outer(p, f)),
    ("rope_positions_from_1", "rope_position", lambda p, f: outer(p + 1, f)),
    ("rope_restarts", "rope_position", lambda p, f: outer(p - p[..., :1], f)),
    ("rope_decode_ahead", "rope_position", lambda p, f: outer(p + (p.shape[-1] == 1), f)),
    ("rope_angles_doubled", "rope_twice", lambda p, f: 2 * outer(p, f)),
    ("rope_bf16_angles", "rope_precision", lambda p, f: (p.to(BF16)[..., None] * f.to(BF16)).float()),
    ("rope_table_too_short", "rope_stale_table", lambda p, f: outer(p.clamp(max=15), f)),
    ("rope_half_exponent", "rope_freq", lambda p, f: outer(p, frequencies(1e4, len(f), 1))),
):
    fault(_ids, ROPE)(named(_name, angles(_change)))


@fault("rope_pairing", ROPE)
def rope_interleaved(model: Any, stack: ExitStack, where: list[int]) -> None:
    def pairs(x: Any, cos: Any, sin: Any) -> Any:
        half = x.shape[-1] // 2
        c, s = (part[:, None, :, :half].repeat_interleave(2, -1) for part in (cos, sin))
        turned = torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)
        return x * c + turned * s

    rotation(stack, model, where, lambda q, k, cos, sin: (pairs(q, cos, sin), pairs(k, cos, sin)))


@fault("nope_layers", ROPE)
def rope_left_out(model: Any, stack: ExitStack, where: list[int]) -> None:
    rotation(stack, model, where, lambda q, k, cos, sin: (q, k))


@fault("nope_layers", "k_rope")
def rope_of_q_only(model: Any, stack: ExitStack, where: list[int]) -> None:
    rotation(stack, model, where, lambda q, k, cos, sin: (turn(q, cos, sin), k))


@fault("yarn_mscale", ROPE)
def rope_magnitude(model: Any, stack: ExitStack, where: list[int]) -> None:
    rotation(stack, model, where, lambda q, k, cos, sin: (turn(q, cos, sin) * 1.3, turn(k, cos, sin) * 1.3))


# ---- attention


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


def by_cache(change: Callable[..., Any]) -> Break:
    """A fault by `change(k, v)` of the keys and values that attention reads."""

    def apply(model: Any, stack: ExitStack, where: list[int]) -> None:
        def compute(q: Any, k: Any, v: Any, mask: Any, scaling: float) -> Any:
            k, v = change(k, v)
            probs = scored(q, k, mask, scaling).softmax(-1)
            return probs @ v, probs

        attention(stack, where, compute)

    return apply


def zeroed(x: Any, slot: int) -> Any:
    x = x.clone()
    x[:, :, slot] = 0
    return x


for _name, _ids, _cache in (
    ("cache_shifted", "kv_slot", lambda k, v: (k.roll(1, 2), v.roll(1, 2))),
    ("cache_values_shifted", "kv_slot", lambda k, v: (k, v.roll(1, 2))),
    ("cache_slot_zero", "kv_stale", lambda k, v: (zeroed(k, 4), zeroed(v, 4))),
    ("cache_scaled", "kv_quant_scale", lambda k, v: (2 * k, 2 * v)),
    ("cache_values_scaled", "value_scale", lambda k, v: (k, v / 2)),
):
    fault(_ids, "attn", inside=True)(named(_name, by_cache(_cache)))


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


# ---- norms


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


# ---- weights


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
    (
        "q_heads_reversed",
        "weight_heads",
        "q",
        "self_attn.q_proj",
        lambda w: w.reshape(4, 16, -1).flip(0).reshape(w.shape),
    ),
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


# ---- feed-forward block, residual stream


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


# ---- both ends


@fault("embed_scale", "embd")
def embedding_scaled(model: Any, stack: ExitStack, where: list[int]) -> None:
    model.model.embed_tokens.register_forward_hook(lambda module, args, out: out * 8)


@fault("embed_offset", "embd")
def embedding_of_next_id(model: Any, stack: ExitStack, where: list[int]) -> None:
    table = model.model.embed_tokens
    table.weight.data = table.weight.data.roll(-1, 0)


@fault("tied_head", "logits")
def head_is_embedding(model: Any, stack: ExitStack, where: list[int]) -> None:
    model.lm_head.weight = model.model.embed_tokens.weight


def head(change: Callable[[Any], Any]) -> Break:
    """A fault by `change(logits)`."""

    def apply(model: Any, stack: ExitStack, where: list[int]) -> None:
        model.lm_head.register_forward_hook(lambda module, args, out: change(out))

    return apply


def without_last(logits: Any) -> Any:
    return torch.cat((logits[..., :280], torch.zeros_like(logits[..., 280:])), -1)


for _name, _ids, _head in (
    ("logits_halved", "logit_scale", lambda x: x / 2),
    ("logits_capped", "logit_softcap", lambda x: 3 * (x / 3).tanh()),
    ("logits_of_row_before", "logits_row", lambda x: x.roll(1, 1)),
    ("logits_of_padding", "vocab_pad", without_last),
):
    fault(_ids, "logits")(named(_name, head(_head)))
