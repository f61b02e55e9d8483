"""How much rounding an op may add by itself, from the precision that each side declares.

A stored number is off by at most its unit roundoff u, relatively, and by half of it on average.  A sum of K
products in float32 is off by about sqrt(K) u of its result (errors of random sign; Higham & Mary 2019,
doi:10.1137/18M1226312), whatever order or tile size an engine sums in.  Engines that compute in 16 or 8 bits
round the operands and the result to that and still add up in float32; where a result is small by cancellation
the operands' rounding weighs more, OPERANDS units on a prefill and twice that for one token (with 8-bit
activations V was seen 2 and 14 units off, part of it inherited).
An RMS norm's sum has no cancellation and its root halves the error.  All figures are relative to the L2 norm
of the tensor (as NRMSE is) and upper ends: typical ones are a quarter to a tenth.
"""

import math
from dataclasses import dataclass, replace

import ml_dtypes
import numpy as np

from ..tracer.format import Header, TensorSpec, numpy_dtype
from ..tracer.names import Key

UNIT = {  # largest relative error of rounding to nearest
    "float64": 2.0**-53,
    "float32": 2.0**-24,
    "tfloat32": 2.0**-11,
    "float16": 2.0**-11,
    "bfloat16": 2.0**-8,
    "float8_e4m3fn": 2.0**-4,
    "float8_e5m2": 2.0**-3,
}
F32 = UNIT["float32"]
QUANTISED = 8e-3  # activations in 32 signed bytes and a scale (ggml): off by 4e-3 of their RMS on average
OPERANDS = 6.0
GELU = ("gemma", "gpt2")  # architectures whose activation it is


@dataclass(frozen=True)
class Precision:
    """Unit roundoffs of one engine: matrix products with weights, attention, everything else.

    `table` says that its activation is one that ggml looks up, where no trace of it tells.
    """

    product: float
    attention: float
    other: float
    says: str
    table: bool = False

    @classmethod
    def of(cls, header: Header) -> "Precision":
        """From the header; llama.cpp quantises activations for quantised weights and keeps K and V in f16.

        `settings["activation"]` (q8, f16, bf16, f32) overrides what is assumed of products, `settings["kv"]`
        (f32, f16, q8_0, …) what of K and V.
        """
        other = UNIT.get(header.compute_dtype, F32)
        ggml = header.engine.startswith("llama.cpp")
        activation = str(header.settings.get("activation", "q8" if ggml else ""))
        names = {"f16": "float16", "bf16": "bfloat16", "f32": "float32", "f64": "float64"}
        product = QUANTISED if activation == "q8" else UNIT.get(names.get(activation, ""), other)
        attention = max(other, _cache(header)) if ggml else other
        says = "8-bit activations" if activation == "q8" else header.compute_dtype or "float32"
        return cls(product, attention, other, says, ggml and header.architecture.startswith(GELU))

    def at(self, key: Key, spec: TensorSpec | None) -> "Precision":
        """That of one tensor: ggml looks GELU up in a table of float16, as the trace says, or the model."""
        stated = spec is not None and spec.conventions.get("activation_type") == "F16"
        if key.name != "act" or not (stated or (spec is None and self.table)):
            return self
        return replace(self, other=max(self.other, UNIT["float16"]), says="a table in float16")


def _cache(header: Header) -> float:
    """What llama.cpp's attention rounds to: its cache's type, and 16 bits in flash attention."""
    kind = str(header.settings.get("kv", "f16"))
    if kind == "f32" and not header.settings.get("flash"):
        return 0.0
    bits = next((bits for bits in (8, 5, 4) if kind.startswith((f"q{bits}", f"iq{bits}"))), 0)
    return QUANTISED * 2.0 ** (8 - bits) if bits else UNIT["bfloat16" if kind == "bf16" else "float16"]


def storage(dtype: str, rms: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Rounding `count` numbers of this RMS to a stored type, and those that are tiny to its smallest ones."""
    if dtype not in UNIT:
        return np.zeros_like(rms)
    spacing = float(ml_dtypes.finfo(numpy_dtype(dtype)).smallest_subnormal) / 2
    return usual(count) * (UNIT[dtype] + spacing / np.maximum(rms, spacing))


def usual(count: np.ndarray | int) -> np.ndarray:
    """The RMS of `count` errors of rounding to nearest, of the largest: 1/sqrt(3), but all of a few may be
    large.
    """
    return np.minimum(1.0, (1 + 2 / np.sqrt(np.maximum(count, 1))) / 3**0.5)


def product(unit: float, terms: int, spread: np.ndarray) -> np.ndarray:
    """A matrix product over `terms`: operands and result rounded to `unit`, the sum in float32 or better.

    `spread` is 2 for one token and goes to 1 for many, whose errors average out.
    """
    return OPERANDS * spread * unit + math.sqrt(terms) * min(unit, F32)


def norm(unit: float, terms: int) -> float:
    """An RMS norm over `terms`, added up one by one at worst."""
    return 3 * unit + math.sqrt(terms) / 2 * min(unit, F32)


def rotation(unit: float, position: np.ndarray) -> np.ndarray:
    """RoPE at `position`: an angle computed in float32 is off by position * u radians."""
    return 3 * unit + 2 * position * min(unit, F32)


def softmax(unit: float, terms: int) -> float:
    """exp of a rounded argument, a sum over `terms` keys in tiles, a division."""
    return 8 * unit + math.sqrt(terms) * min(unit, F32)


def elementwise(unit: float) -> float:
    """A few roundings of one element: sum, product, activation."""
    return 4 * unit
