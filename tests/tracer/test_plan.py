"""The plan of a run says what the run then does."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ggufs import write_gguf
from recording import record_trace
from tensortrace.tracer.architecture import build_graph
from tensortrace.tracer.gguf import Model
from tensortrace.tracer.names import NAMES, Key
from tensortrace.tracer.plan import flops, shapes, tensor_specs, trace_bytes
from tensortrace.tracer.trace import Trace

Recorder = Callable[..., Trace]


@pytest.mark.parametrize(
    "shape",
    [{}, {"kv_heads": 1, "head_dim": 8, "embd": 48}, {"bias": True, "tied": True, "layers": 1}],
    ids=["grouped", "multi-query", "biases"],
)
def test_shapes_are_those_of_the_run(shape: dict, tmp_path: Path) -> None:
    model = Model(write_gguf(tmp_path / "model.gguf", **shape))
    record_trace(model, tmp_path / "a.h5", [1, 2, 3, 4, 5], n_new=3, tile=2)
    trace, graph = Trace(tmp_path / "a.h5"), build_graph(model, tile=2)
    for step in trace.steps:
        planned = shapes(graph, step.n_tokens, step.kv_len)
        for key in graph.outputs:
            assert trace.read(key, step.index).shape == planned[key], (step, key)


def test_bytes_are_those_of_the_file(record_tiny: Recorder) -> None:
    trace = record_tiny(n_new=1)
    data = sum(trace.read(key, 0).nbytes for key in trace.tensors)
    assert trace_bytes(trace.tensors.values(), trace.steps, 4) == data
    assert data < trace.path.stat().st_size


def test_specs_name_axes_and_conventions(tiny_model: Model) -> None:
    graph = build_graph(tiny_model, softmax="two-pass", tile=32)
    specs = {spec.key: spec for spec in tensor_specs(graph, graph.outputs, "float16")}
    assert list(specs) == graph.outputs
    assert all(spec.axes == NAMES[spec.key.name].axes for spec in specs.values())
    assert all(spec.dtype == "float16" for spec in specs.values())
    q_rope, tiles = specs[Key(0, "q_rope")], specs[Key(1, "m_tiles")]
    assert q_rope.conventions == {"base": 10000.0, "dims": 16, "pairing": "interleaved"}
    assert q_rope.inputs == (Key(0, "q"),)
    assert tiles.conventions == {"scale": 0.25, "softmax": "two-pass"}
    assert tiles.sizes["tile"] == 32
    assert tiles.inputs == (Key(1, "q_rope"), Key(1, "k_rope"), Key(1, "v"))


def test_flops_count_the_products(tiny_model: Model) -> None:
    """Matrices: 2 per weight and token; attention: Q.K and P.V, 2 * heads * dim each per query and key."""
    graph = build_graph(tiny_model)
    matrices = [
        name for name in tiny_model.names if name.endswith("weight") and len(tiny_model.shape(name)) == 2
    ]
    weights = sum(int(np.prod(tiny_model.shape(name))) for name in matrices if "token_embd" not in name)
    assert flops(graph, 5, 8) == 2 * 5 * weights + 2 * (4 * 5 * 8 * 64)
