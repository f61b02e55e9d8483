"""Faults put into PyTorch itself: a function that transformers calls, patched for a whole run.

The model is any architecture's, as transformers computes it.  `scaled_dot_product_attention` is called in
place of eager attention, as `attn_implementation="sdpa"` does, and its callers' mistakes are put in.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import transformers_models
from faults import models
from faults.judging import NEW, TILE, TOKENS, Result, judge
from recording import header, record_trace
from tensortrace.tracer.architecture import build_graph
from tensortrace.tracer.engines import torch as engine
from tensortrace.tracer.gguf import Model
from tensortrace.tracer.record import Request, record
from tensortrace.tracer.selection import Selection
from tensortrace.tracer.trace import Trace

F = torch.nn.functional
INSIDE = {"scores", "m", "l"}  # computed beside attention, not in it
Wrong = Callable[..., Any]


@dataclass(frozen=True)
class Fault:
    """`wrong(right function)` in place of `target.name`: the ids of the fault and the tensors it shows in.

    Without a target `wrong` is a whole attention function.
    """

    ids: set[str]
    names: str
    on: str
    wrong: Wrong
    target: Any = None
    name: str = ""


FAULTS: dict[str, Fault] = {}


def add(title: str, ids: str, names: str, on: str, wrong: Wrong, target: Any = None, name: str = "") -> None:
    assert title not in FAULTS, title
    FAULTS[title] = Fault(set(ids.split()), names, on, wrong, target, name)


def faults(folder: Path, quick: bool) -> Iterator[Result]:
    """Every fault on each of its architectures."""
    bench = _Bench(folder)
    for title, fault in list(FAULTS.items())[:: 4 if quick else 1]:
        for place in fault.on.split():
            yield bench.tried(title, fault, place)


class _Bench:
    """The right models as GGUF and as transformers has them, and our traces of them."""

    def __init__(self, folder: Path):
        self._folder, self._ids = folder, np.random.default_rng(2).integers(97, 250, TOKENS).tolist()
        self._made = cache(self._make)

    def tried(self, title: str, fault: Fault, place: str) -> Result:
        right, saved, reference = self._made(place)
        made = engine.Engine(build_graph(right), saved)
        inside = INSIDE if fault.names == "attn" else set()
        inside = inside if fault.target else INSIDE | {"probs"}
        names = ",".join(sorted({key.name for key in made.available()} - inside))
        ours = self._folder / "torch.h5"
        ours.unlink(missing_ok=True)
        request = Request(self._ids, n_new=NEW, selection=Selection(tensors=names))
        with ExitStack() as stack:
            _break(stack, fault, made._model)
            record(made, request, ours, header(right, **made.settings))
        outputs, names = build_graph(right).outputs, fault.names.split()
        with Trace(ours) as trace:
            told, changed = f"{title} of {place}", {key for key in outputs if key.name in names}
            return judge("foreign: torch functions", told, fault.ids, changed, (trace, reference), right)

    def _make(self, place: str) -> tuple[Model, Path, Trace]:
        model = Model(models.write(self._folder, place))
        name = place.replace("/", "-")
        record_trace(model, self._folder / f"{name}.h5", self._ids, n_new=NEW, tile=TILE)
        return model, transformers_models.save(model, self._folder / name), Trace(self._folder / f"{name}.h5")


def _break(stack: ExitStack, fault: Fault, model: Any) -> None:
    if fault.target is not None:
        for name in fault.name.split():
            right = getattr(fault.target, name)
            stack.enter_context(patch.object(fault.target, name, fault.wrong(right)))
        return
    file = next(sys.modules[type(m).__module__] for m in model.modules() if hasattr(m, "layer_idx"))
    stack.enter_context(patch.object(file, "eager_attention_forward", fault.wrong))


# ---- functions

PLAIN = "llama qwen2 gemma3 phi3 olmo2"
NORMS = "attn_norm ffn_norm q_norm k_norm attn_post_norm ffn_post_norm final_norm"
ROPE = "q_rope k_rope"


def on_scores(change: Callable[[Any], Any]) -> Wrong:
    """softmax with its argument changed where it is one of attention, [1, head, query, key]."""

    def wrong(right: Any) -> Any:
        def softmax(x: Any, dim: int = -1, **rest: Any) -> Any:
            return right(change(x) if x.ndim == 4 else x, dim=dim, **rest)

        return softmax

    return wrong


def on_result(change: Callable[..., Any]) -> Wrong:
    """`change(result, *arguments)` in place of a result."""
    return lambda right: lambda *given, **options: change(right(*given, **options), *given)


def on_input(change: Callable[[Any], Any]) -> Wrong:
    return lambda right: lambda x, *given, **options: right(change(x), *given, **options)


def over_queries(right: Any) -> Any:
    return lambda x, dim=-1, **rest: right(x, dim=-2 if x.ndim == 4 else dim, **rest)


def undivided(p: Any, x: Any, *rest: Any) -> Any:
    return (x - x.amax(-1, keepdim=True)).exp() if x.ndim == 4 else p


def off_by_one(p: Any, x: Any, *rest: Any) -> Any:
    """1 added to the sum."""
    return p / (1 + (-x.logsumexp(-1, keepdim=True)).exp()) if x.ndim == 4 else p


for title, ids, wrong in (
    ("softmax_over_queries", "softmax_axis", over_queries),
    ("softmax_of_half", "attn_scale", on_scores(lambda x: x / 2)),
    ("softmax_undivided", "probs_sum", on_result(undivided)),
    ("softmax_off_by_one", "attn_sink", on_result(off_by_one)),
    ("softmax_of_bf16", "scores_fp16", on_scores(lambda x: x.bfloat16().float())),
    ("softmax_of_f16", "scores_fp16", on_scores(lambda x: x.half().float())),
):
    add(title, ids, "attn", PLAIN, wrong, F, "softmax")


def in_type(dtype: Any) -> Wrong:
    """Q·K rounded to 16 bits; probs·V as it is."""

    def wrong(right: Any) -> Any:
        def matmul(a: Any, b: Any) -> Any:
            is_scores = a.ndim == 4 and a.shape[-1] == b.shape[-2] and b.stride(-1) != 1
            return right(a.to(dtype), b.to(dtype)).float() if is_scores else right(a, b)

        return matmul

    return wrong


add("matmul_of_bf16", "scores_fp16", "attn", "llama qwen2 gemma3", in_type(torch.bfloat16), torch, "matmul")
add("matmul_of_f16", "scores_fp16", "attn", "llama qwen2 gemma3", in_type(torch.float16), torch, "matmul")

for title, ids, wrong in (
    ("rsqrt_of_more", "norm_eps", on_input(lambda x: x + 0.01)),
    ("rsqrt_of_bf16", "norm_precision", on_input(lambda x: x.bfloat16().float())),
    ("rsqrt_left_out", "norm_missing", lambda right: lambda x: torch.ones_like(x)),
):
    add(title, ids, NORMS, f"{PLAIN} qwen3", wrong, torch, "rsqrt")


def total(right: Any) -> Any:
    return lambda x, *given, **options: x.sum(*given, **options)


def over_tokens(right: Any) -> Any:
    return lambda x, dim=None, **rest: right(x, 1 if dim == -1 and x.ndim == 3 else dim, **rest)


add("mean_is_sum", "norm_axis", NORMS, PLAIN, total, torch.Tensor, "mean")
add("mean_over_tokens", "norm_axis", NORMS, "llama qwen2 gemma2", over_tokens, torch.Tensor, "mean")

for other, change in (("relu", F.relu), ("identity", lambda x: x), ("gelu", F.gelu)):
    wrong = lambda right, change=change: lambda x, **_: change(x)  # noqa: E731
    add(f"silu_is_{other}", "activation", "act", "llama qwen2 phi3 olmo2 granite", wrong, F, "silu")
nan = on_result(lambda y, x, **_: torch.where(x > 2, torch.nan, y))
add("silu_overflows", "act_overflow", "act", "llama qwen2 olmo2", nan, F, "silu")

add("embedding_of_next", "embed_offset", "embd", "llama qwen2", on_input(lambda ids: ids + 1), F, "embedding")
add("embedding_times_8", "embed_scale", "embd", "llama phi3", on_result(lambda y, *_: 8 * y), F, "embedding")


def without_bias(right: Any) -> Any:
    return lambda x, w, b=None: right(x, w)


def bias_twice(right: Any) -> Any:
    return lambda x, w, b=None: right(x, w, b) if b is None else right(x, w, 2 * b)


def turned_if_square(right: Any) -> Any:
    return lambda x, w, b=None: right(x, w.T if w.shape[0] == w.shape[1] else w, b)


def without_tail(right: Any) -> Any:
    return lambda x, w, b=None: right(x[..., : x.shape[-1] // 32 * 32], w[:, : w.shape[1] // 32 * 32], b)


add("linear_without_bias", "qkv_bias", "q k v", "qwen2", without_bias, F, "linear")
add("linear_with_bias_twice", "qkv_bias", "q k v", "qwen2", bias_twice, F, "linear")
SQUARE = "q attn_out"
add("linear_turned_if_square", "weight_transposed", SQUARE, "qwen2 olmo2", turned_if_square, F, "linear")
MATRICES = "q k v attn_out gate up ffn_out logits"
add("linear_in_blocks_of_32", "tile_tail", MATRICES, "qwen2 olmo2 phi3", without_tail, F, "linear")

for title, ids, method, wrong in (
    ("cos_in_bf16", "rope_precision", "cos sin", on_result(lambda y, *_: y.bfloat16().float())),
    ("angle_in_bf16", "rope_precision", "cos sin", on_input(lambda x: x.bfloat16().float())),
    ("sin_negated", "rope_kernel", "sin", on_result(lambda y, *_: -y)),
):
    add(title, ids, ROPE, "llama qwen2 qwen3 gemma2", wrong, torch.Tensor, method)
no_eps = lambda right: lambda x, shape, w, b, eps: right(x, shape, w, b, 0.02)  # noqa: E731
add("layer_norm_eps", "norm_eps", "attn_norm ffn_norm final_norm", "gpt2", no_eps, F, "layer_norm")


# ---- scaled_dot_product_attention and those who call it


def sdpa(change: Callable[[Any, Any, Any, dict[str, Any]], dict[str, Any]], tiled: bool = False) -> Wrong:
    """Attention by torch's own function; `change(module, q, k, options)` gives its options."""

    def forward(module: Any, q: Any, k: Any, v: Any, mask: Any, scaling: float, **rest: Any) -> Any:
        groups = q.shape[1] // k.shape[1]
        k, v = (x.repeat(1, groups, 1, 1) if tiled else x.repeat_interleave(groups, 1) for x in (k, v))
        options = change(module, q, k, {"attn_mask": mask, "scale": scaling})
        attn = F.scaled_dot_product_attention(q, k, v, **options)
        return attn.transpose(1, 2).contiguous(), attn

    return forward


def squared(module: Any, q: Any, k: Any, options: dict[str, Any]) -> dict[str, Any]:
    return options | {"scale": options["scale"] ** 2}


def top_left(module: Any, q: Any, k: Any, options: dict[str, Any]) -> dict[str, Any]:
    """is_causal counts from the first key, whatever the cache holds."""
    return options | {"attn_mask": None, "is_causal": True}


for title, ids, on, wrong in (
    ("sdpa_is_causal", "causal_mask", "llama qwen2 phi3", sdpa(top_left)),
    ("sdpa_without_mask", "causal_mask", "llama qwen2", sdpa(lambda m, q, k, o: o | {"attn_mask": None})),
    ("sdpa_default_scale", "attn_scale", "granite", sdpa(lambda m, q, k, o: o | {"scale": None})),
    (
        "sdpa_scale_twice",
        "attn_scale",
        "llama qwen3",
        sdpa(squared),
    ),
    ("sdpa_without_cap", "attn_softcap", "gemma2", sdpa(lambda m, q, k, o: o)),
    ("sdpa_without_sinks", "attn_sink", "gpt-oss", sdpa(lambda m, q, k, o: o)),
    ("sdpa_heads_tiled", "gqa_map", "llama qwen3 gemma3", sdpa(lambda m, q, k, o: o, tiled=True)),
):
    add(title, ids, "attn", on, wrong)
