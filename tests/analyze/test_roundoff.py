"""What is assumed of an engine's precision from what its trace declares."""

import pytest
from tensortrace.analyze.roundoff import QUANTISED, UNIT, Precision
from tensortrace.tracer.format import Header


@pytest.mark.parametrize(
    ("settings", "unit"),
    [
        ({}, UNIT["float16"]),  # llama.cpp's own default
        ({"kv": "f32"}, UNIT["float32"]),
        ({"kv": "f32", "flash": True}, UNIT["float16"]),
        ({"kv": "bf16"}, UNIT["bfloat16"]),
        ({"kv": "q8_0", "flash": True}, QUANTISED),
        ({"kv": "q4_0"}, 16 * QUANTISED),
        ({"kv": "iq4_nl"}, 16 * QUANTISED),
        ({"kv": 7}, UNIT["float16"]),
    ],
)
def test_attention_of_llama_cpp_rounds_as_its_cache(settings: dict, unit: float) -> None:
    assert Precision.of(Header(engine="llama.cpp", settings=settings)).attention == unit
    assert Precision.of(Header(engine="cpu", settings=settings)).attention == UNIT["float32"]
