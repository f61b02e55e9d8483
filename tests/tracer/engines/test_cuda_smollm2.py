"""The CUDA engine on a real model and a real GPU, against the CPU engine: every tensor, m and l included."""

import gc
from pathlib import Path

import numpy as np
import pytest
from recording import distances, header, record_trace, worst
from tensortrace.analyze.compare import compare
from tensortrace.tracer.architecture import build_graph
from tensortrace.tracer.engines.cuda import Engine
from tensortrace.tracer.gguf import Model
from tensortrace.tracer.record import Request, Result, plan, record
from tensortrace.tracer.selection import Selection
from tensortrace.tracer.trace import Trace

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(500)]

EVERYTHING = Selection()
SOME_LAYERS = Selection(layers="0,1,29")  # all scores of 4096 tokens would be 36 GB


def record_on_gpu(
    model: Model, path: Path, ids: list[int], *, dtype: str = "float32", tile: int = 128, **request: object
) -> Result:
    engine = Engine(build_graph(model, softmax="online", tile=tile), model, dtype=dtype)
    return record(engine, Request(ids, **request), path, header(model, tile=tile))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("length", "new", "tile", "selection"),
    [
        (1, 3, 128, EVERYTHING),
        (2, 3, 128, EVERYTHING),
        (17, 3, 128, EVERYTHING),
        (48, 65, 128, EVERYTHING),
        (127, 3, 128, EVERYTHING),
        (128, 3, 128, EVERYTHING),
        (129, 3, 128, EVERYTHING),
        (129, 3, 48, EVERYTHING),
        (1000, 2, 128, EVERYTHING),
        (1000, 2, 96, SOME_LAYERS),
        (4096, 2, 128, SOME_LAYERS),
    ],
)
def test_every_tensor_is_that_of_the_cpu_and_comes_again_to_the_bit(
    smollm2_model: Model, tmp_path: Path, length: int, new: int, tile: int, selection: Selection
) -> None:
    """The CPU computes in float64: two float32 runs would differ by the rounding of both."""
    ids = np.random.default_rng(0).integers(100, 40_000, length).tolist()
    asked = {"n_new": new, "selection": selection}
    first = record_on_gpu(smollm2_model, tmp_path / "a.h5", ids, tile=tile, **asked)
    record_on_gpu(smollm2_model, tmp_path / "b.h5", ids, tile=tile, **asked)
    reference = record_trace(smollm2_model, tmp_path / "cpu.h5", ids, dtype="float64", tile=tile, **asked)
    assert first.generated == reference.generated
    with Trace(tmp_path / "a.h5") as a, Trace(tmp_path / "b.h5") as b, Trace(tmp_path / "cpu.h5") as cpu:
        assert max(distances(a, b).values()) == 0
        found = distances(a, cpu)
        print(f"{length} tokens, tiles of {tile}: {worst(found)}")
        assert max(found.values()) <= 1e-5, worst(found)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_rounding(smollm2_model: Model, tmp_path: Path, dtype: str) -> None:
    ids = np.random.default_rng(1).integers(100, 40_000, 48).tolist()
    record_on_gpu(smollm2_model, tmp_path / "gpu.h5", ids, dtype=dtype, n_new=9)
    record_trace(smollm2_model, tmp_path / "cpu.h5", ids, n_new=9)
    with Trace(tmp_path / "gpu.h5") as gpu, Trace(tmp_path / "cpu.h5") as cpu:
        comparison = compare(gpu, cpu)
    assert comparison.verdict == "rounding", comparison.sentence


@pytest.mark.parametrize(
    ("length", "new", "selection", "dtype"),
    [
        (17, 1, EVERYTHING, "float32"),
        (512, 65, EVERYTHING, "float32"),
        (512, 65, EVERYTHING, "bfloat16"),
        (1000, 2, Selection(tensors="logits"), "float32"),
        (4096, 1, SOME_LAYERS, "float32"),
        (64, 300, Selection(phase="decode"), "float32"),
    ],
)
def test_the_memory_is_what_a_dry_run_says(
    smollm2_model: Model, tmp_path: Path, length: int, new: int, selection: Selection, dtype: str
) -> None:
    """Within a tenth of what CuPy holds afterwards; it gives nothing back until it is told to."""
    gc.collect()
    engine = Engine(build_graph(smollm2_model), smollm2_model, dtype=dtype)
    device = engine._device
    device.trim()
    before = device.memory_used()
    request = Request(list(range(100, 100 + length)), n_new=new, selection=selection)
    asked, _ = plan(engine, request)
    stated = engine.memory([spec.key for spec in asked], request.steps)
    record(engine, request, tmp_path / "gpu.h5", header(smollm2_model))
    held = device.memory_used() - before
    print(f"{length} + {new} tokens, {dtype}: {stated / 1e6:.0f} MB stated, {held / 1e6:.0f} MB held")
    assert 0.9 <= stated / held <= 1.1
