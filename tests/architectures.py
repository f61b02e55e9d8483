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


def mixture(weights: Weights) -> Weights:
    """Four experts of 40 in place of each feed-forward block."""
    rng = np.random.default_rng(2)
    made = {name: values for name, values in weights.items() if ".ffn_" not in name or "norm" in name}
    for name in [name for name in weights if name.endswith("ffn_gate.weight")]:
        block, width = name.removesuffix("ffn_gate.weight"), weights[name].shape[1]
        shapes = {"gate": (4, 40, width), "up": (4, 40, width), "down": (4, width, 40)}
        drawn = {f"ffn_{n}_exps": rng.normal(0, s[-1] ** -0.5, s) for n, s in shapes.items()}
        drawn["ffn_gate_inp"] = rng.normal(0, 2 * width**-0.5, (4, width))
        made |= {f"{block}{n}.weight": values.astype(np.float32) for n, values in drawn.items()}
    return made


def with_shared_expert(weights: Weights) -> Weights:
    rng = np.random.default_rng(3)
    made = mixture(weights)
    for name in [
        name for name in weights if name.endswith(("ffn_gate.weight", "ffn_up.weight", "ffn_down.weight"))
    ]:
        made[name.replace(".weight", "_shexp.weight")] = weights[name]
    for name in [name for name in made if name.endswith("ffn_gate_inp.weight")]:
        width = made[name].shape[1]
        made[name.replace("inp", "inp_shexp")] = rng.normal(0, width**-0.5, width).astype(np.float32)
    return made


def gpt_oss(weights: Weights) -> Weights:
    """A mixture of experts with biases everywhere, and a sink for each head."""
    rng = np.random.default_rng(4)
    made = mixture(weights)
    for name in list(made):
        if name.endswith(("_exps.weight", "ffn_gate_inp.weight", "attn_output.weight")):
            bias = rng.normal(0, 0.2, made[name].shape[:-1])
            made[name.replace(".weight", ".bias")] = bias.astype(np.float32)
        if name.endswith("attn_q.bias"):
            made[name.replace("attn_q.bias", "attn_sinks.weight")] = rng.normal(0, 1, 8).astype(np.float32)
        if name.endswith("ffn_norm.weight"):
            made[name.replace("ffn_norm", "post_attention_norm")] = made.pop(name)
    return made


def gpt2(weights: Weights) -> Weights:
    """Q, K and V as one matrix, learned positions, no gate, and a bias for every norm and product."""
    rng = np.random.default_rng(5)
    made = {name: values for name, values in fused(weights).items() if name != "output.weight"}
    for name in [name for name in made if name.endswith("ffn_up.weight")]:
        made[name] = weights[name]
    for name in [name for name in made if name != "token_embd.weight"]:
        made[name.replace(".weight", ".bias")] = rng.normal(0, 0.2, len(made[name])).astype(np.float32)
    width = made["token_embd.weight"].shape[1]
    return made | {"position_embd.weight": rng.normal(0, 0.5, (512, width)).astype(np.float32)}


EXPERTS = {
    "expert_count": 4,
    "expert_used_count": 2,
    "expert_feed_forward_length": 40,
}
INSIDE_EXPERTS = frozenset({"expert_gate", "expert_up", "expert_act", "expert_out"})
GPT_OSS = EIGHTH | {"tied": False, "bias": True, "change": gpt_oss, "metadata": EXPERTS | WINDOW}
MIXTURE = {"change": mixture, "metadata": EXPERTS}


CASES = [
    *cases(
        "llama",
        each({"mixtral": THIRD, "mixtral-alike": ALIKE}, **MIXTURE, ff=40),
        unseen_by_torch=INSIDE_EXPERTS,
    ),
    *cases("qwen3moe", each(HEADS, **MIXTURE, qk_norm=True), unseen_by_torch=INSIDE_EXPERTS),
    *cases(
        "qwen2moe",
        each(
            EVEN,
            tied=False,
            bias=True,
            change=with_shared_expert,
            metadata=EXPERTS | {"expert_shared_feed_forward_length": 96},
        ),
        unseen_by_torch=INSIDE_EXPERTS,
    ),
    *cases(
        "gpt-oss",
        {"eighth": GPT_OSS, "fourth": GPT_OSS | {"kv_heads": 2, "head_dim": 20}},
        unseen_by_llama_cpp=frozenset({"m", "l"}),
        unseen_by_torch=INSIDE_EXPERTS | {"m", "l"},
    ),
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
    ),
    *cases(
        "gpt2",
        {
            name: {
                "heads": heads,
                "kv_heads": heads,
                "head_dim": size,
                "change": gpt2,
                "metadata": {"attention.layer_norm_epsilon": 1e-5},
            }
            for name, heads, size in (("one", 1, 24), ("three", 3, 40), ("eight", 8, 12))
        },
    ),
]
