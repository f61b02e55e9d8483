"""Numbers beyond float16 in a trace that is stored in it: neither a fault nor the end of the search."""

from pathlib import Path

import numpy as np
import pytest
import zoo
from recording import record_trace
from tensortrace.analyze.cause import Injection
from tensortrace.analyze.clipped import largest, unclipped
from tensortrace.analyze.compare import compare
from tensortrace.analyze.find import name_causes
from tensortrace.analyze.verify import verify
from tensortrace.tracer.format import TensorSpec
from tensortrace.tracer.gguf import Model
from tensortrace.tracer.names import Key
from tensortrace.tracer.trace import Trace

IDS = tuple(range(100, 124))


@pytest.fixture(scope="module")
def loud(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(zoo.write(tmp_path_factory.mktemp("loud") / "m.gguf", ("loud_ffn",)))


@pytest.mark.parametrize(
    ("stored", "computed", "most"),
    [
        ("float16", "float32", 65504.0),
        ("float16", "float16", np.inf),  # what is infinite was so in the engine
        ("bfloat16", "float16", np.inf),
        ("bfloat16", "float32", pytest.approx(3.39e38, rel=1e-2)),
        ("int32", "float32", np.inf),
    ],
)
def test_the_largest_number_of_a_type(stored: str, computed: str, most: float) -> None:
    spec = TensorSpec(Key(0, "q"), ("token", "head", "dim"), {"head": 1, "dim": 1}, stored)
    assert largest(spec, computed) == most


def test_what_was_infinite_is_computed_where_it_may_be() -> None:
    recorded = np.array([np.inf, np.inf, -np.inf, np.inf, 3.0])
    computed = np.array([70000.0, 60000.0, -7e4, -7e4, 7e4])
    assert unclipped(recorded, computed, 65504.0).tolist() == [70000.0, np.inf, -7e4, np.inf, 3.0]
    assert unclipped(recorded, computed, np.inf) is recorded


def test_a_healthy_run_beyond_its_file_is_silent(loud: Model, tmp_path: Path) -> None:
    record_trace(loud, tmp_path / "t.h5", IDS, n_new=3, storage="float16")
    trace = Trace(tmp_path / "t.h5")
    assert np.isinf(trace.read(Key(0, "act"), 0)).any()
    found = verify(trace, loud)
    assert (found.verdict, found.coverage["only_a"]) == ("rounding", 0)


@pytest.mark.parametrize(
    "fault",
    ["act_quant_overflow@1,ffn_out", "fp16_accum@1,ffn_out", "resid_fp16@1,resid_out", "activation@1=relu"],
)
def test_faults_are_named_beyond_the_file(loud: Model, tmp_path: Path, fault: str) -> None:
    change = Injection.parse(fault)
    record_trace(loud, tmp_path / "a.h5", IDS, n_new=3, storage="float16", change=change.apply)
    record_trace(loud, tmp_path / "b.h5", IDS, n_new=3, storage="float16")
    a, b = Trace(tmp_path / "a.h5"), Trace(tmp_path / "b.h5")
    assert name_causes(compare(a, b), a, b, loud).causes[0].id == change.cause.id
