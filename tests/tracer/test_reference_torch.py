"""Every tensor of the CPU engine against transformers, run eagerly in float32 on the same GGUF."""

from pathlib import Path

import numpy as np
import pytest
import smollm2_golden as golden
from ggufs import write_gguf
from recording import nrmse, record_trace, worst
from tensortrace.tracer.names import Key
from tensortrace.tracer.trace import Trace

pytestmark = pytest.mark.torch
LIMIT = 1e-5
LOGITS = Key(None, "logits")


def reference(trace: Trace, gguf: Path, tile: int) -> list[dict[Key, np.ndarray]]:
    """Every tensor of every step as transformers computes it from the tokens of `trace`."""
    from transformers_reference import Capture, load

    capture = Capture(load(gguf), tile)
    return [capture.step(trace.tokens[step.start : step.kv_len]) for step in trace.steps]


def check(trace: Trace, expected: list[dict[Key, np.ndarray]]) -> None:
    assert all(set(step) == set(trace.tensors) for step in expected)
    found = {
        (index, key): nrmse(trace.read(key, index), array)
        for index, step in enumerate(expected)
        for key, array in step.items()
    }
    assert max(found.values()) <= LIMIT, worst(found)


def test_smollm2_prefill_and_decode(smollm2: Path, tmp_path: Path) -> None:
    path = tmp_path / "smollm2.h5"
    result = record_trace(smollm2, path, golden.PROMPT, n_new=golden.N_NEW, tile=golden.TILE)
    with Trace(path) as trace:
        expected = reference(trace, smollm2, golden.TILE)
        check(trace, expected)
    assert result.generated == [int(step[LOGITS][-1].argmax()) for step in expected]


def test_golden_is_what_transformers_gives(smollm2: Path) -> None:
    stored = np.load(golden.PATH)
    generated, digests = golden.generate(smollm2)
    assert np.array_equal(generated, stored["generated"])
    assert golden.distance(digests, stored["digests"]).max() <= LIMIT


@pytest.mark.parametrize(
    "shape",
    [
        {"heads": 4, "kv_heads": 4, "tied": True},
        {"heads": 6, "kv_heads": 1, "head_dim": 32},
        {"heads": 4, "kv_heads": 2, "head_dim": 8, "embd": 96, "rope_base": 500.0, "eps": 1e-3},
    ],
    ids=["multi-head", "multi-query", "narrow-heads"],
)
def test_small_models(shape: dict, tmp_path: Path) -> None:
    gguf = write_gguf(tmp_path / "model.gguf", tokenizer=False, **shape)
    record_trace(gguf, tmp_path / "a.h5", [5, 250, 17, 17, 99, 3, 280], n_new=4, tile=3, chunk=4)
    with Trace(tmp_path / "a.h5") as trace:
        check(trace, reference(trace, gguf, tile=3))
