"""What is made of traces of every architecture: llama.cpp's own are clean, and typical faults are named."""

from pathlib import Path

import engine_golden as golden
import pytest
from architecture import ARCHITECTURES, CASES, TOKENS, Case
from ggufs import write_gguf
from recording import nrmse, record_trace
from tensortrace.analyze.cause import Injection
from tensortrace.analyze.compare import compare
from tensortrace.analyze.find import name_causes
from tensortrace.analyze.replay import Replay
from tensortrace.tracer.architecture import build_graph
from tensortrace.tracer.gguf import Model
from tensortrace.tracer.graph import Op
from tensortrace.tracer.trace import Trace

FAULTS = [(arch, fault) for arch, entry in ARCHITECTURES.items() for fault in entry.faults]
FAULTS += [  # of what few architectures have
    ("gemma2", "swa_width"),
    ("gemma3", "swa_width=-2"),
    ("gemma2", "logit_softcap=5"),
    ("gemma2", "logit_softcap=0"),
    ("gpt2", "norm_eps=1e-3"),
    ("olmo2", "norm_eps@q_norm=0.02"),
    ("olmo2", "norm_axis@k_norm=sum"),
    ("qwen3", "norm_missing@q_norm=undivided"),
]


@pytest.mark.parametrize(("arch", "fault"), FAULTS)
def test_a_typical_fault_is_named(arch: str, fault: str, tmp_path: Path) -> None:
    model, injection = (
        write(next(case for case in CASES if case.arch == arch), tmp_path),
        Injection.parse(fault),
    )
    record_trace(model, tmp_path / "a.h5", TOKENS[:-3], n_new=3, change=injection.apply)
    record_trace(model, tmp_path / "b.h5", TOKENS[:-3], n_new=3)
    with Trace(tmp_path / "a.h5") as ours, Trace(tmp_path / "b.h5") as reference:
        named = name_causes(compare(ours, reference), ours, reference, model)
    assert named.exit_code == 1
    assert named.causes[0].id == injection.cause.id
    assert named.causes[0].confidence > 0.99


@pytest.mark.llamacpp
@pytest.mark.parametrize("case", CASES, ids=str)
def test_llama_cpps_own_ops_reproduce_what_they_recorded(case: Case, tmp_path: Path) -> None:
    from tensortrace.tracer.engines import llama_cpp

    model = write(case, tmp_path)
    engine = llama_cpp.Engine(build_graph(model), model)
    with golden.record_engine(engine, model, tmp_path / "llama.h5", TOKENS[:-3], n_new=4) as trace:
        replay = Replay(trace, model)
        judged = {
            (op.out, step.index): nrmse(
                trace.read(op.out, step.index), replay.compute(op, step.index)[op.out]
            )
            for op in replay.graph.ops
            if op.out in trace.tensors
            for step in trace.steps
        }
        wrong = {key: error for key, error in judged.items() if error > limit(replay.graph.producer(key[0]))}
        record_trace(model, tmp_path / "ours.h5", TOKENS[:-3], n_new=4)
        with Trace(tmp_path / "ours.h5") as ours:
            compared = [compare(a, b) for a, b in ((ours, trace), (trace, ours))]
    assert not wrong
    assert [found.sentence for found in compared if found.exit_code] == []
    assert len(judged) >= 4 * 2 * 12


def limit(op: Op) -> float:
    """A float32 op against float64, but for GELU, which llama.cpp looks up in a table of 16-bit numbers."""
    return 1e-3 if "gelu" in (op.kind, op.params.get("activation", "").removesuffix("_tanh")) else 1e-5


def write(case: Case, folder: Path) -> Model:
    return Model(write_gguf(folder / "model.gguf", case.arch, **case.shape))
