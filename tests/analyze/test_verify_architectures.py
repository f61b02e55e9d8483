"""`verify` on every architecture: silent on healthy engines, typical faults found and named."""

from pathlib import Path

import pytest
from architecture import ARCHITECTURES, CASES, TOKENS, Case
from engine_golden import record_engine
from ggufs import write_gguf
from injected import blamed, faulty_ops, inject
from recording import record_trace
from tensortrace.analyze.verify import verify
from tensortrace.tracer.architecture import build_graph
from tensortrace.tracer.gguf import Model
from tensortrace.tracer.graph import Graph
from tensortrace.tracer.names import Key
from tensortrace.tracer.selection import Selection
from tensortrace.tracer.trace import Trace

ARCHITECTURE_FAULTS = [(arch, fault) for arch, entry in ARCHITECTURES.items() for fault in entry.faults]
every_case = pytest.mark.parametrize("case", CASES, ids=str)


@every_case
@pytest.mark.parametrize("how", [{}, {"chunk": 7}, {"dtype": "float64", "storage": "bfloat16"}], ids=str)
def test_silent_on_every_architecture(case: Case, tmp_path: Path, how: dict) -> None:
    model = Model(write_gguf(tmp_path / "m.gguf", case.arch, **case.shape))
    record_trace(model, tmp_path / "t.h5", TOKENS[:-3], n_new=4, tile=5, **how)
    found = verify(Trace(tmp_path / "t.h5"), model)
    assert (found.verdict, found.coverage["only_a"]) == ("rounding", 0)
    lossy = "storage" in how  # the error of storing is known well: less is allowed in excess of it
    assert found.judged.excess.max() < (0.9 if lossy else 0.7)


@pytest.mark.llamacpp
@every_case
def test_silent_on_llama_cpp_with_every_architecture(case: Case, tmp_path: Path) -> None:
    from tensortrace.tracer.engines.llama_cpp import Engine

    model = Model(write_gguf(tmp_path / "m.gguf", case.arch, **case.shape))
    engine = Engine(build_graph(model), model)
    found = verify(record_engine(engine, model, tmp_path / "t.h5", TOKENS[:-3], n_new=4), model)
    assert (found.verdict, found.coverage["only_a"]) == ("rounding", 0)


@pytest.mark.torch
@every_case
def test_silent_on_transformers_with_every_architecture(case: Case, tmp_path: Path) -> None:
    import transformers_models
    from tensortrace.tracer.engines.torch import Engine

    model = Model(write_gguf(tmp_path / "m.gguf", case.arch, **case.shape))
    engine = Engine(build_graph(model), transformers_models.save(model, tmp_path / "folder"))
    found = verify(record_engine(engine, model, tmp_path / "t.h5", TOKENS[:-3], n_new=4), model)
    assert (found.verdict, found.coverage["only_a"]) == ("rounding", 0)


@pytest.mark.parametrize(("arch", "fault"), ARCHITECTURE_FAULTS)
def test_faults_in_every_architecture(arch: str, fault: str, tmp_path: Path) -> None:
    case = next(case for case in CASES if case.arch == arch)
    model = Model(write_gguf(tmp_path / "m.gguf", arch, **case.shape))
    record_trace(model, tmp_path / "t.h5", TOKENS[:-3], n_new=2, change=inject(fault))
    found = verify(Trace(tmp_path / "t.h5"), model)
    assert found.exit_code == 1
    assert blamed(found) <= faulty_ops(found, fault)


@pytest.mark.parametrize("storage", ["float32", "bfloat16"])
def test_a_wrong_expert_is_told_from_a_near_tie(tmp_path: Path, storage: str) -> None:
    """The router's last choice replaced by the expert that it wants least, for one token."""
    case = next(case for case in CASES if case.arch == "qwen3moe")
    model = Model(write_gguf(tmp_path / "m.gguf", case.arch, **case.shape))

    def change(graph: Graph) -> Graph:
        def wrap(compute):
            def worst(x, *, k):
                ids = compute(x, k=k)
                ids[-1, -1] = x[-1].argmin()
                return ids

            return worst

        at = Key(1, "expert_ids")
        return graph.replace(lambda op: op.wrapped(wrap) if op.out == at else op)

    for tensors in ("*", "resid_out,scores"):
        path = tmp_path / f"{len(tensors)}.h5"
        selection = Selection(tensors=tensors)
        record_trace(model, path, TOKENS[:-3], change=change, storage=storage, selection=selection)
        found = verify(Trace(path), model)
        assert {key for key, _ in found.wrong} == {Key(1, "expert_ids" if tensors == "*" else "resid_out")}
