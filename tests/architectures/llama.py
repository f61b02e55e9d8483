"""Llama, with its own RoPE scaling and others, and Mixtral."""

import numpy as np
from architecture import (
    ALIKE,
    EXPERTS,
    HEADS,
    LINEAR,
    THIRD,
    YARN,
    Architecture,
    each,
    half_split,
    mixture,
    rope,
    stacked_experts,
)

LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


def llama3_factors(head_dim: int, base: float = 10_000.0) -> np.ndarray:
    """What each frequency is divided by in Llama 3.1 (`rope_freqs.weight`), from the paper's constants."""
    wavelengths = 2 * np.pi * base ** (np.arange(0, head_dim, 2) / head_dim)
    long = LLAMA3["original_max_position_embeddings"] / LLAMA3["low_freq_factor"]
    short = LLAMA3["original_max_position_embeddings"] / LLAMA3["high_freq_factor"]
    smooth = (long / wavelengths - 1) / (long / short - 1)
    between = 1 / ((1 - smooth) / LLAMA3["factor"] + smooth)
    factors = np.where(wavelengths > long, LLAMA3["factor"], np.where(wavelengths < short, 1, between))
    return factors.astype(np.float32)


def config(model):
    own = {}
    if window := model.hparam("attention.sliding_window", 0):
        own |= {"model_type": "mistral", "sliding_window": window}
    if "rope_freqs.weight" in model:
        own["rope_parameters"] = rope(model) | LLAMA3 | {"rope_type": "llama3"}
    if experts := model.hparam("expert_count", 0):
        used = model.hparam("expert_used_count")
        own |= {"model_type": "mixtral", "num_local_experts": experts, "num_experts_per_tok": used}
    return own


ENTRY = Architecture(
    shapes=HEADS
    | {
        "linear": THIRD | {"metadata": LINEAR},
        "yarn": THIRD | {"metadata": YARN},
        "llama3": THIRD | {"tensors": {"rope_freqs.weight": llama3_factors(THIRD["head_dim"])}},
    }
    | each({"mixtral": THIRD, "mixtral-alike": ALIKE}, change=mixture, metadata=EXPERTS, ff=40),
    faults=("rope_pairing", "gqa_map", "norm_placement"),
    model_type="llama",
    config=config,
    weight=half_split,
    extra=stacked_experts,
)
