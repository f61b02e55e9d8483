"""Phi 3: fused projections, LongRoPE, a rotated part of the head.  Its window has a test of its own."""

import numpy as np
from architecture import EVEN, Architecture, each
from ggufs import Weights


def fused(weights: Weights) -> Weights:
    """Q, K and V as one matrix, gate and up as another."""
    made = dict(weights)
    for name in [name for name in weights if name.endswith("attn_q.weight")]:
        block = name.removesuffix("attn_q.weight")
        made[f"{block}attn_qkv.weight"] = np.concatenate([made.pop(f"{block}attn_{n}.weight") for n in "qkv"])
        both = [made.pop(f"{block}ffn_{n}.weight") for n in ("gate", "up")]
        made[f"{block}ffn_up.weight"] = np.concatenate(both)
    return made


def longrope(original: int, dims: int) -> dict:
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


def config(model):
    hp = model.hparam
    if "rope_factors_long.weight" not in model:
        return {"sliding_window": hp("attention.sliding_window", None)}
    original = hp("rope.scaling.original_context_length")
    parameters = {
        "rope_type": "longrope",
        "rope_theta": hp("rope.freq_base"),
        "partial_rotary_factor": hp("rope.dimension_count") / hp("attention.key_length"),
        "original_max_position_embeddings": original,
        "short_factor": model.weight("rope_factors_short.weight").tolist(),
        "long_factor": model.weight("rope_factors_long.weight").tolist(),
    }
    return {"original_max_position_embeddings": original, "rope_parameters": parameters}


FUSED = EVEN["third"] | {"change": fused}
ENTRY = Architecture(
    shapes=each(EVEN, change=fused)
    | {"short": FUSED | longrope(256, dims=20), "long": FUSED | longrope(16, dims=12)},
    faults=("rope_pairing", "dequant_layout@k", "causal_mask"),
    model_type="phi3",
    names={"ffn_up": "mlp.gate_up_proj"},
    config=config,
)
