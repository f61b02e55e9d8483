"""Weights as engines load them: each mistake is made here in another way than there, and must be named."""

from collections.abc import Callable, Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from ggufs import write_gguf
from gguf import GGMLQuantizationType
from gguf.quants import quantize
from tensortrace.analyze.weight_check import Verdict, check_all, check_weight
from tensortrace.analyze.weight_dump import read_dump
from tensortrace.tracer.errors import UserError
from tensortrace.tracer.gguf import Model

Q, K, V = (f"blk.1.attn_{name}.weight" for name in "qkv")
TYPES = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "Q2_K", "Q3_K")


def model_of(path: Path, qtype: str) -> Model:
    """Two layers of width 256; gguf writes legacy types only, so blocks of the others are put in."""
    if not qtype.endswith("_K"):
        return Model(write_gguf(path, heads=8, kv_heads=4, head_dim=32, ff=256, qtype=qtype))
    write_gguf(path, heads=8, kv_heads=4, head_dim=32, ff=256, qtype="Q8_0")
    return Model(path)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Model]:
    folder = tmp_path_factory.mktemp("weights")
    made: dict[str, Model] = {}

    def model(qtype: str) -> Model:
        if qtype not in made:
            path = write_gguf(
                folder / f"{qtype}.gguf", heads=8, kv_heads=4, head_dim=32, ff=256, qtype=qtype, eps=1e-5
            )
            made[qtype] = Model(path)
        return made[qtype]

    return model
