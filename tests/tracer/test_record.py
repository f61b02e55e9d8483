"""The recording loop: what is selected, how a run ends, what the trace then says."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from recording import record_trace
from tensortrace.tracer.errors import UserError
from tensortrace.tracer.gguf import Model
from tensortrace.tracer.names import Key
from tensortrace.tracer.record import Request
from tensortrace.tracer.sampling import Sampling
from tensortrace.tracer.selection import Selection
from tensortrace.tracer.stats import summarize
from tensortrace.tracer.trace import Trace

Recorder = Callable[..., Trace]


def test_the_result_says_what_was_recorded(tiny_model: Model, tmp_path: Path) -> None:
    seen: list[int] = []
    result = record_trace(tiny_model, tmp_path / "a.h5", n_new=4, on_token=seen.append)
    trace = Trace(result.path)
    assert result.generated == seen == trace.generated.tolist()
    assert result.steps == len(trace.steps) == 4
    assert result.tensors == len(trace.tensors)
    assert 0 < result.bytes_written < result.path.stat().st_size


def test_the_same_run_gives_the_same_numbers(record_tiny: Recorder) -> None:
    a, b = record_tiny(n_new=3), record_tiny(n_new=3)
    for step in a.steps:
        for key in a.tensors:
            assert np.array_equal(a.read(key, step.index), b.read(key, step.index))


def test_selected_tokens_are_rows_of_the_whole(record_tiny: Recorder) -> None:
    whole = record_tiny(n_new=5, chunk=6)
    part = record_tiny(n_new=5, chunk=6, selection=Selection(tokens="1,4-6,11-"))
    assert part.recorded.tolist() == [1, 4, 5, 6, 11, 12, 13]
    for step in part.steps:
        rows = part.rows(step.index) - step.start
        for key, spec in part.tensors.items():
            assert part.has(key, step.index) == bool(len(rows))
            if len(rows):
                expected = np.take(
                    whole.read(key, step.index), rows, 0 if spec.joined else spec.axes.index("query")
                )
                assert np.array_equal(part.read(key, step.index), expected), (step, key)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_one_phase(record_tiny: Recorder, phase: str) -> None:
    trace = record_tiny(n_new=4, selection=Selection(phase=phase))
    for step in trace.steps:
        assert trace.has(Key(0, "probs"), step.index) == (step.phase == phase)
        assert trace.has(Key(0, "q"), step.index) == (step.phase == phase)
    assert len(trace.tokens) == 13
    assert trace.complete


def test_decode_alone_of_a_run_that_ends_in_the_prefill(record_tiny: Recorder) -> None:
    first = int(record_tiny().generated[0])
    trace = record_tiny(n_new=4, selection=Selection(phase="decode"), stop_ids=frozenset({first}))
    assert trace.complete
    assert [step.phase for step in trace.steps] == ["prefill"]
    assert not trace.has(Key(0, "q"), 0)


def test_an_early_end_gives_exact_shapes(record_tiny: Recorder) -> None:
    generated = record_tiny(n_new=8).generated.tolist()
    stop = next(i for i in range(1, 8) if generated[i] not in generated[:i])
    trace = record_tiny(n_new=8, stop_ids=frozenset({generated[stop]}))
    assert trace.complete
    assert trace.generated.tolist() == generated[: stop + 1]
    assert len(trace.steps) == stop + 1
    assert trace._file["layers/00/q"].shape[0] == 10 + stop
    assert trace._file["layers/00/probs/decode"].shape == (stop, 4, 1, 10 + stop)
    assert list(trace.damaged()) == []
    assert list(trace.path.parent.glob(".*")) == []


def test_statistics_are_those_of_the_whole_tensors(record_tiny: Recorder) -> None:
    whole, stats = record_tiny(n_new=3), record_tiny(n_new=3, stats_only=True)
    expected = {
        (step.index, key): values
        for step in whole.steps
        for spec in whole.tensors.values()
        for key, values in summarize(spec, whole.read(spec.key, step.index)).items()
    }
    assert {key for _, key in expected} == set(stats.tensors)
    for (step, key), values in expected.items():
        assert np.array_equal(stats.read(key, step), values), key


def test_only_what_is_selected_of_statistics(record_tiny: Recorder) -> None:
    trace = record_tiny(n_new=3, stats_only=True, selection=Selection(tensors="probs", tokens="2,11"))
    assert {key.name for key in trace.tensors} == {"probs.stats", "probs.hist"}
    assert [trace.has(Key(0, "probs.stats"), step) for step in range(3)] == [True, False, True]


def test_sampling_is_seeded_and_told(record_tiny: Recorder) -> None:
    runs = [record_tiny(n_new=12, sampling=Sampling(2.0, 50, 0.9, seed)) for seed in (1, 1, 2)]
    assert runs[0].generated.tolist() == runs[1].generated.tolist() != runs[2].generated.tolist()
    assert runs[2].header.sampling == {"temperature": 2.0, "top_k": 50, "top_p": 0.9, "seed": 2, "n_new": 12}


def test_float64_is_stored_as_asked(record_tiny: Recorder) -> None:
    exact = record_tiny(dtype="float64", storage="float64")
    assert exact.header.compute_dtype == "float64"
    assert exact.read(Key(1, "q"), 0).dtype == np.float64
    assert np.allclose(exact.read(Key(1, "q"), 0), record_tiny().read(Key(1, "q"), 0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("wrong", "says"), [({"ids": []}, "no tokens"), ({"n_new": 0}, "at least 1"), ({"chunk": 0}, "chunk")]
)
def test_impossible_requests(wrong: dict, says: str) -> None:
    with pytest.raises(UserError, match=says):
        Request(**{"ids": [1], **wrong})


def test_ids_outside_the_vocabulary_are_refused(tiny_model: Model, tmp_path: Path) -> None:
    for token in (-1, 300):
        with pytest.raises((UserError, IndexError)):
            record_trace(tiny_model, tmp_path / "a.h5", [1, token])
