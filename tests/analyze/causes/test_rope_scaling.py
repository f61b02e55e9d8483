"""Scalings of the rotary frequencies that are more than one number, and faults of one phase's kernel alone.

What the faulty engine computes comes from the metadata of another model, by `tracer/rotation.py`, which is
checked against llama.cpp and transformers; the search only sees the recorded tensors.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from architecture import LINEAR, YARN
from ggufs import write_gguf
from recording import record_trace
from tensortrace.analyze.cause import Injection
from tensortrace.analyze.compare import Comparison, compare
from tensortrace.analyze.find import name_causes
from tensortrace.tracer.architecture import build_graph
from tensortrace.tracer.gguf import Model
from tensortrace.tracer.graph import Compute, Graph, Op
from tensortrace.tracer.trace import Trace

IDS = tuple(int(token) for token in np.random.default_rng(1).integers(97, 250, 24))
FACTORS = {"rope_freqs.weight": np.array([1, 1, 1, 1.5, 3, 6, 8, 8], np.float32)}  # as Llama 3.1 has them

Named = Callable[..., Comparison]


@pytest.fixture
def named(tmp_path: Path) -> Named:
    def find(model: Model, change: Callable[[Graph], Graph], storage: str = "float32") -> Comparison:
        for name, graph in (("a", change), ("b", lambda graph: graph)):
            record_trace(model, tmp_path / f"{name}.h5", IDS, n_new=4, tile=8, change=graph, storage=storage)
        with Trace(tmp_path / "a.h5") as ours, Trace(tmp_path / "b.h5") as reference:
            return name_causes(compare(ours, reference), ours, reference, model)

    return find


def write(path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, Any]) -> Model:
    return Model(write_gguf(path, metadata=metadata, tensors=tensors, seed=5))


def scaled_as(wrong: Model) -> Callable[[Graph], Graph]:
    """Puts the rotations of another model into a graph."""
    turned = {op.out: op for op in build_graph(wrong).ops if op.kind == "rope"}

    def change(op: Op) -> Op:
        other = turned.get(op.out)
        if other is None:
            return op
        factors = [wrong.weight(name, np.float64) for name in other.weights]

        def wrap(_: Compute) -> Compute:
            return lambda x, positions, *rest, **params: other.compute()(
                x, positions, *factors, **other.params
            )

        return op.wrapped(wrap)

    return lambda graph: graph.replace(change)


@pytest.mark.parametrize(
    ("model", "engine"),
    [
        (({}, {}), (YARN, {})),
        (({}, {}), ({}, FACTORS)),
        (({}, {}), (LINEAR, {})),
        ((YARN, {}), (LINEAR, {})),
        ((YARN, {}), ({}, {})),
        ((LINEAR, {}), (YARN, {})),
        (({}, FACTORS), ({}, {})),
    ],
    ids=["yarn", "llama3", "linear", "linear for yarn", "no yarn", "yarn for linear", "no llama3"],
)
def test_a_scaling_the_model_has_not(named: Named, tmp_path: Path, model: Any, engine: Any) -> None:
    right, wrong = write(tmp_path / "m.gguf", *model), write(tmp_path / "e.gguf", *engine)
    found = named(right, scaled_as(wrong))
    assert [cause.id for cause in found.causes] == ["rope_scaling"]
    assert found.causes[0].confidence > 0.999


@pytest.mark.parametrize("engine", [YARN, LINEAR], ids=["yarn", "linear"])
def test_a_scaling_in_a_file_of_16_bits(named: Named, tmp_path: Path, engine: Any) -> None:
    """Fitted frequencies are too coarse there to explain all, and are no number to search from."""
    right, wrong = write(tmp_path / "m.gguf", {}, {}), write(tmp_path / "e.gguf", engine, {})
    assert named(right, scaled_as(wrong), "float16").causes[0].id == "rope_scaling"


@pytest.mark.parametrize("base", [33333, 5e5, 1e3])
def test_another_base_is_no_scaling(named: Named, tmp_path: Path, base: float) -> None:
    found = named(write(tmp_path / "m.gguf", {}, {}), Injection.parse(f"rope_theta={base}").apply)
    assert found.causes[0].id == "rope_theta"
    assert "rope_scaling" not in [cause.id for cause in found.causes]


@pytest.mark.parametrize("decode", [True, False])
@pytest.mark.parametrize("fault", ["rope_scaling@q_rope=2.5", "rope_theta@1=1000", "kv_slot@1=2"])
def test_a_fault_of_one_phase(named: Named, tmp_path: Path, fault: str, decode: bool) -> None:
    """Prefill and decode run other kernels, and one of them is wrong."""

    def change(graph: Graph) -> Graph:
        faulty = {op.out: op for op in Injection.parse(fault).apply(graph).ops}

        def either(op: Op) -> Op:
            other = faulty[op.out]
            if other is op:
                return op
            right, wrong = op.compute(), other.compute()

            def wrap(_: Compute) -> Compute:
                def compute(x: np.ndarray, *operands: Any, **params: Any) -> Any:
                    if (len(x) == 1) is decode:
                        return wrong(x, *operands, **{**params, **other.params})
                    return right(x, *operands, **params)

                return compute

            return op.wrapped(wrap)

        return graph.replace(either)

    found = named(write(tmp_path / "m.gguf", {}, {}), change)
    assert found.causes[0].id == Injection.parse(fault).cause.id
    phase = "decode" if decode else "prefill"
    assert f"in {phase} steps alone" in found.causes[0].evidence
