"""The small models of every architecture that the tests run: one entry, a few shapes each."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ggufs import Weights

TOKENS = (5, 250, 17, 17, 99, 3, 280, 84, 104, 101, 32, 259, 260, 271, 97, 98, 99, 12, 77, 201, 18, 44, 9)


@dataclass(frozen=True)
class Case:
    """A model: `shape` as `ggufs.write_gguf` takes it, and the tensors that the references do not show."""

    arch: str
    name: str
    shape: dict[str, Any] = field(default_factory=dict)
    unseen_by_llama_cpp: frozenset[str] = frozenset()
    unseen_by_torch: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return f"{self.arch}-{self.name}"


ALIKE = {"heads": 4, "kv_heads": 4, "head_dim": 16, "tied": True}  # as many KV heads as heads
THIRD = {"heads": 6, "kv_heads": 2, "head_dim": 20, "embd": 96}
EIGHTH = {"heads": 8, "kv_heads": 1, "head_dim": 12, "embd": 80, "tied": True}
HEADS = {"alike": ALIKE, "third": THIRD, "eighth": EIGHTH}
EVEN = {  # where llama.cpp insists on head size = width / heads
    "alike": ALIKE,
    "third": {"heads": 6, "kv_heads": 2, "head_dim": 20, "embd": 120},
    "eighth": {"heads": 8, "kv_heads": 1, "head_dim": 12, "embd": 96, "tied": True},
}

LINEAR = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
YARN = {  # the prompt runs past these 16 positions
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 4.0,
    "rope.scaling.original_context_length": 16,
}
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
OTHER_NORMS = (".attn_norm.weight", ".ffn_norm.weight")
GEMMA = {"post_norms": True, "tied": True, "layers": 7}
WINDOW = {"attention.sliding_window": 6}
MULTIPLIERS = {
    "embedding_scale": 12.0,
    "residual_scale": 0.22,
    "attention.scale": 0.0625,
    "logit_scale": 8.0,
}
CAPS = {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0}


def cases(arch: str, shapes: dict[str, dict[str, Any]], **unseen: frozenset[str]) -> list[Case]:
    return [Case(arch, name, shape, **unseen) for name, shape in shapes.items()]


def each(shapes: dict[str, dict[str, Any]], **more: Any) -> dict[str, dict[str, Any]]:
    return {name: shape | more for name, shape in shapes.items()}


def llama3_factors(head_dim: int, base: float = 10_000.0) -> np.ndarray:
    """What each frequency is divided by in Llama 3.1 (`rope_freqs.weight`), from the paper's constants."""
    wavelengths = 2 * np.pi * base ** (np.arange(0, head_dim, 2) / head_dim)
    long = LLAMA3["original_max_position_embeddings"] / LLAMA3["low_freq_factor"]
    short = LLAMA3["original_max_position_embeddings"] / LLAMA3["high_freq_factor"]
    smooth = (long / wavelengths - 1) / (long / short - 1)
    between = 1 / ((1 - smooth) / LLAMA3["factor"] + smooth)
    factors = np.where(wavelengths > long, LLAMA3["factor"], np.where(wavelengths < short, 1, between))
    return factors.astype(np.float32)


def fused(weights: Weights) -> Weights:
    """Q, K and V as one matrix, gate and up as another."""
    made = dict(weights)
    for name in [name for name in weights if name.endswith("attn_q.weight")]:
        block = name.removesuffix("attn_q.weight")
        made[f"{block}attn_qkv.weight"] = np.concatenate([made.pop(f"{block}attn_{n}.weight") for n in "qkv"])
        both = [made.pop(f"{block}ffn_{n}.weight") for n in ("gate", "up")]
        made[f"{block}ffn_up.weight"] = np.concatenate(both)
    return made


def longrope(original: int, dims: int) -> dict[str, Any]:
    """Metadata and factors of a model that was stretched from `original` positions to 512."""
    stretch = np.sqrt(1 + np.log(512 / original) / np.log(original))
    return {
        "metadata": {
            "rope.scaling.original_context_length": original,
            "rope.scaling.attn_factor": float(stretch),
            "rope.dimension_count": dims,
        },
        "tensors": {
            "rope_factors_short.weight": np.linspace(1, 1.5, dims // 2, dtype=np.float32),
            "rope_factors_long.weight": np.linspace(1, 30, dims // 2, dtype=np.float32),
        },
    }


def norms_behind(weights: Weights) -> Weights:
    """OLMo 2's norms: none before the blocks, and those of Q and K over all heads."""
    rng = np.random.default_rng(1)
    kept = {name: values for name, values in weights.items() if not name.endswith(OTHER_NORMS)}
    for name in [name for name in weights if name.endswith(("attn_q.weight", "attn_k.weight"))]:
        size = len(weights[name])
        kept[name.replace(".weight", "_norm.weight")] = rng.normal(1, 0.2, size).astype(np.float32)
    return kept


CASES = [
    *cases(
        "llama",
        HEADS
        | {
            "linear": THIRD | {"metadata": LINEAR},
            "yarn": THIRD | {"metadata": YARN},
            "llama3": THIRD | {"tensors": {"rope_freqs.weight": llama3_factors(THIRD["head_dim"])}},
        },
    ),
    *cases("qwen2", each(EVEN, bias=True) | {"yarn": EVEN["third"] | {"bias": True, "metadata": YARN}}),
    *cases("qwen3", each(HEADS, qk_norm=True) | {"yarn": THIRD | {"qk_norm": True, "metadata": YARN}}),
    *cases(
        "gemma2",
        each(HEADS, **GEMMA, metadata=WINDOW | CAPS),
        unseen_by_llama_cpp=frozenset({"raw_logits"}),
        unseen_by_torch=frozenset({"raw_logits"}),
    ),
    *cases(
        "gemma3",
        each(HEADS, **GEMMA, qk_norm=True, metadata=WINDOW)
        | {"linear": THIRD | GEMMA | {"qk_norm": True, "metadata": WINDOW | LINEAR}},
    ),
    *cases(
        "phi3",
        each(EVEN, change=fused)
        | {
            "short": EVEN["third"] | {"change": fused} | longrope(256, dims=20),
            "long": EVEN["third"] | {"change": fused} | longrope(16, dims=12),
        },
    ),
    *cases(
        "olmo2",
        each(EVEN, tied=False, post_norms=True, change=norms_behind)
        | each(
            {"olmo3": EVEN["third"]}, post_norms=True, change=norms_behind, layers=5, metadata=WINDOW | YARN
        ),
    ),
    *cases("smollm3", each(HEADS, layers=5) | {"yarn": THIRD | {"layers": 5, "metadata": YARN}}),
    *cases(
        "granite",
        each(HEADS, metadata=MULTIPLIERS),
        unseen_by_llama_cpp=frozenset({"raw_logits"}),
        unseen_by_torch=frozenset({"raw_logits"}),
    ),
]
