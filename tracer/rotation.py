"""The RoPE scaling that a GGUF asks for, as parameters of the `rope` op.

Metadata `rope.scaling.*` as llama.cpp reads it (`llama_model_base::load_hparams`, `llama_context`): `linear`
position interpolation, `yarn` (arXiv:2309.00071), `longrope` (arXiv:2402.13753).  Llama 3's frequency factors
come as the tensor `rope_freqs.weight`, LongRoPE's as `rope_factors_long` and `rope_factors_short`.
"""

import math
from typing import Any

from .errors import ModelError
from .graph import Weights

FACTORS = ("/rope_freqs.weight?",)
LONG_FACTORS = ("/rope_factors_short.weight?", "/rope_factors_long.weight?")
TYPES = ("none", "linear", "yarn", "longrope")


def rotation(
    model: Weights,
    pairing: str,
    *,
    base: float | None = None,
    scaled: bool = True,
    whole_pairs: bool = True,
) -> dict[str, Any]:
    """Parameters of `rope` for `model`.

    `base` stands in for rope.freq_base; `scaled` False leaves the scaling out (layers with a window of some
    models); `whole_pairs` False keeps the ends of YaRN's ramp where they fall between two pairs.
    """
    hp = model.hparam
    dims = hp("rope.dimension_count", head_size(model))
    base = hp("rope.freq_base", 10000.0) if base is None else base
    params: dict[str, Any] = {"base": base, "dims": dims, "pairing": pairing}
    kind, factor = hp("rope.scaling.type", "linear"), hp("rope.scaling.factor", 0.0) or 1.0
    if kind not in TYPES:
        raise ModelError(f"RoPE scaling {kind!r} is not supported: {', '.join(TYPES)} are")
    if not scaled or kind == "none":
        return params
    if factor != 1.0:
        params["scale"] = 1.0 / factor
    magnitude = hp("rope.scaling.attn_factor", 1.0)
    if kind == "yarn":
        params["ramp"] = _ramp(model, dims, base, whole_pairs)
        magnitude *= _stretch(factor, 1.0) / _stretch(factor, hp("rope.scaling.yarn_log_multiplier", 0.0))
    if magnitude != 1.0:
        params["magnitude"] = magnitude
    if "rope_factors_long.weight" in model:
        params["original"] = _original(model)
    return params


def head_size(model: Weights) -> int:
    """Elements of a query or key head."""
    hp = model.hparam
    return int(hp("attention.key_length", hp("embedding_length") // hp("attention.head_count")))


def _original(model: Weights) -> int:
    return int(model.hparam("rope.scaling.original_context_length", model.hparam("context_length")))


def _stretch(factor: float, weight: float) -> float:
    """YaRN's attention factor, 0.1 ln(factor) + 1 at weight 1."""
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def _ramp(model: Weights, dims: int, base: float, whole: bool) -> tuple[float, float]:
    """The pairs between which YaRN goes from keeping a frequency to interpolating it."""

    def pair(turns: float) -> float:
        """The pair that turns so often within the original context."""
        return dims * math.log(_original(model) / (turns * 2 * math.pi)) / (2 * math.log(base))

    low = pair(model.hparam("rope.scaling.yarn_beta_fast", 32.0))
    high = pair(model.hparam("rope.scaling.yarn_beta_slow", 1.0))
    low, high = (math.floor(low), math.ceil(high)) if whole else (low, high)
    return max(low, 0.0), min(high, dims - 1.0)
