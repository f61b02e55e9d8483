"""From loose tensors to a trace: steps, axes, what is left out, and what contradicts itself."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensortrace.tracer.assemble import assemble
from tensortrace.tracer.axes import Heads, arrange
from tensortrace.tracer.dump import Dump, Piece, StepInfo
from tensortrace.tracer.errors import UserError
from tensortrace.tracer.format import Header, Step
from tensortrace.tracer.names import Key
from tensortrace.tracer.trace import Trace

RNG = np.random.default_rng(0)


def piece(step: int, name: str, *shape: int, layer: int | None = None, **more: Any) -> Piece:
    values = RNG.normal(size=shape).astype(more.pop("dtype", np.float32))
    return Piece(step, Key(layer, name), shape, values.dtype.name, lambda: values, **more)


def assembled(tmp_path: Path, *pieces: Piece, **dump: Any) -> Trace:
    assemble(Dump(list(pieces), header=Header("mine"), **dump), tmp_path / "a.h5")
    return Trace(tmp_path / "a.h5")


def run(*sizes: int) -> list[Piece]:
    """Steps of so many tokens, on a model of 4 query and 2 KV heads of 8."""
    pieces, end = [], 0
    for step, rows in enumerate(sizes):
        end += rows
        pieces += [
            piece(step, "embd", rows, 32),
            piece(step, "q", rows, 4, 8, layer=0),
            piece(step, "v", rows, 2, 8, layer=0),
            piece(step, "scores", 4, rows, end, layer=0),
            piece(step, "m", 4, rows, layer=0),
            piece(step, "scratch", rows, 3, layer=0),
            piece(step, "table", 7),
            piece(step, "logits", 1, 100),
        ]
    return pieces


def test_a_run_comes_back(tmp_path: Path) -> None:
    pieces = run(5, 1, 1)
    steps = {0: StepInfo(tokens=(3, 4, 5, 6, 7)), 1: StepInfo(tokens=(8,)), 2: StepInfo(tokens=(9,))}
    with assembled(tmp_path, *reversed(pieces), steps=steps) as trace:
        assert trace.steps == [Step(0, "prefill", 0, 5), Step(1, "decode", 5, 1), Step(2, "decode", 6, 1)]
        assert trace.complete
        assert list(trace.tokens) == [3, 4, 5, 6, 7, 8, 9]
        assert list(trace.generated) == [8, 9, -1]
        assert list(trace.damaged()) == []
        assert [key.name for key in trace.tensors] == [
            *("embd", "q", "v", "scores", "m", "scratch", "logits", "table")
        ]
        for item in pieces:
            stored = trace.read(item.key, item.step)
            if item.key.name == "logits" and item.step == 0:  # the last row: no other was computed
                assert np.isnan(stored[:4]).all()
                stored = stored[4:]
            assert np.array_equal(stored, item.load()), item
        assert trace.tensors[Key(None, "logits")].conventions == {"partial": True, "rows": "last"}
        assert trace.tensors[Key(0, "scratch")].axes == ("token", "axis1")
        assert trace.tensors[Key(None, "table")].axes == ("axis0",)


@pytest.mark.parametrize(
    ("shape", "axes", "expected"),
    [
        ((5, 4, 8), (), (5, 4, 8)),
        ((5, 32), (), (5, 4, 8)),
        ((1, 5, 32), (), (5, 4, 8)),
        ((1, 5, 4, 8), (), (5, 4, 8)),
        ((4, 5, 8), ("head", "token", "dim"), (5, 4, 8)),
        ((5, 8, 4), ("token", "dim", "head"), (5, 4, 8)),
        ((5, 32), ("batch", "token", "head*dim"), (5, 4, 8)),
        ((1, 5, 32), ("batch", "token", "head*dim"), (5, 4, 8)),
        ((1, 4, 8), (), (1, 4, 8)),
        ((4, 8), ("head", "dim"), (1, 4, 8)),
        ((32,), (), (1, 4, 8)),
    ],
)
def test_layouts_of_q(shape: tuple[int, ...], axes: tuple[str, ...], expected: tuple[int, ...]) -> None:
    found = arrange(Key(0, "q"), shape, axes, Heads(4, 2), expected[0])
    assert found is not None
    assert (found.axes, found.shape) == (("token", "head", "dim"), expected)
    assert found.apply(np.zeros(shape)).shape == expected


def test_values_move_with_their_axes() -> None:
    canonical = np.arange(5 * 4 * 8).reshape(5, 4, 8)
    found = arrange(Key(0, "q"), (4, 5, 8), ("head", "token", "dim"), Heads())
    assert found is not None
    assert np.array_equal(found.apply(canonical.transpose(1, 0, 2)), canonical)


def test_heads_are_learned_from_other_tensors(tmp_path: Path) -> None:
    pieces = [
        piece(0, "q", 5, 32, layer=0),
        piece(0, "v", 5, 16, layer=0),
        piece(0, "q_rope", 5, 4, 8, layer=0),
        piece(0, "k_rope", 5, 2, 8, layer=0),
    ]
    with assembled(tmp_path, *pieces) as trace:
        assert trace.read(Key(0, "q"), 0).shape == (5, 4, 8)
        assert trace.read(Key(0, "v"), 0).shape == (5, 2, 8)
    with assembled(tmp_path, *pieces[:2]) as trace:
        assert trace.tensors[Key(0, "q")].axes == ("token", "dim")


def test_padded_keys_are_cut(tmp_path: Path) -> None:
    padded = piece(0, "probs", 4, 5, 32, layer=0, axes=("head", "query", "key+"))
    with assembled(tmp_path, piece(0, "embd", 5, 32), padded) as trace:
        assert np.array_equal(trace.read(Key(0, "probs"), 0), padded.load()[:, :, :5])


def test_a_run_that_begins_in_the_middle(tmp_path: Path) -> None:
    """The keys that scores see tell where a decode step stands."""
    with assembled(tmp_path, piece(7, "q", 1, 4, 8, layer=0), piece(7, "scores", 4, 1, 41, layer=0)) as trace:
        assert trace.steps == [Step(0, "prefill", 40, 1)]
        assert list(trace.recorded) == [40]
        assert list(trace.tokens) == [-1] * 41


def test_steps_can_be_chosen(tmp_path: Path) -> None:
    with assembled(tmp_path, *run(5, 1, 1), only=(range(1, 3),)) as trace:
        assert [(step.start, step.n_tokens) for step in trace.steps] == [(5, 1), (6, 1)]


def test_steps_of_which_nothing_was_recorded_count_for_the_positions(tmp_path: Path) -> None:
    steps = {0: StepInfo(tokens=(1, 2, 3)), 1: StepInfo(tokens=(4,))}
    with assembled(tmp_path, piece(1, "embd", 1, 8), steps=steps) as trace:
        assert [(step.start, step.n_tokens) for step in trace.steps] == [(0, 3), (3, 1)]
        assert not trace.has(Key(None, "embd"), 0)


def test_the_width_of_tiles(tmp_path: Path) -> None:
    tiles = [piece(0, "embd", 40, 8), piece(0, "m_tiles", 3, 4, 40, layer=0)]
    with assembled(tmp_path, *tiles) as trace:
        assert trace.tensors[Key(0, "m_tiles")].sizes["tile"] == 16
    with assembled(tmp_path, *tiles, tile=20 - 3) as trace:
        assert trace.tensors[Key(0, "m_tiles")].sizes["tile"] == 17
    with pytest.raises(UserError, match="how many keys a tile has"):
        assembled(tmp_path, *tiles, tile=4)


def test_types(tmp_path: Path) -> None:
    mixed = [piece(0, "embd", 3, 8, dtype=np.float16), piece(1, "embd", 1, 8, dtype=np.float32)]
    with assembled(tmp_path, *mixed) as trace:
        assert trace.tensors[Key(None, "embd")].dtype == "float32"
        assert np.array_equal(trace.read(Key(None, "embd"), 0), mixed[0].load())


def test_what_a_log_says_of_whole_tensors_goes_with_the_steps(tmp_path: Path) -> None:
    pieces = [piece(step, "embd", 1, 8, printed={"sum": step + 0.5}) for step in (3, 4)]
    with assembled(tmp_path, *pieces) as trace:
        assert trace.tensors[Key(None, "embd")].conventions == {"sum": {"0": 3.5, "1": 4.5}}
        assert json.loads(trace._file["embd"].attrs["conventions"])["sum"]["1"] == 4.5


def test_what_a_trace_cannot_hold_is_left_out_with_a_note(tmp_path: Path) -> None:
    pieces = [piece(0, "embd", 2, 8), piece(1, "embd", 1, 8)]
    odd = [piece(0, "cache", 64, 2), piece(1, "cache", 96, 2), piece(0, "none", 0, 4)]
    done = assemble(Dump([*pieces, *odd]), tmp_path / "a.h5")
    assert done.tensors == 1
    assert done.notes == (
        "left out cache: its shape changes from step to step",
        "left out none: it has no elements",
    )


CONTRADICTIONS = {
    "comes again as": [piece(0, "q", 2, 4, 8, layer=0), piece(0, "q", 2, 4, 8, layer=0)],
    "the step has 3 tokens": [piece(0, "resid_out", 3, 8, layer=0), piece(0, "q", 4, 4, 8, layer=0)],
    r"would be \(2, 8\)": [piece(0, "embd", 2, 8), piece(1, "embd", 2, 9)],
    "one sequence at a time": [piece(0, "scores", 4, 2, 2, layer=0), piece(1, "scores", 4, 2, 2, layer=0)],
    "a batch of 2": [piece(0, "embd", 2, 5, 8, axes=("batch", "token", "dim"))],
    "do not fit|does not fit": [piece(0, "q", 1, 2, 3, 4, 5, layer=0)],
    "is said to have": [piece(0, "q", 2, 4, 8, layer=0, axes=("token", "dim"))],
    "needs a name of its own": [piece(0, "mine", 2, 4, axes=("token", "token"))],
    "tokens are called query": [piece(0, "mine", 2, 4, axes=("token", "key"))],
    "no context is so": [piece(0, "scores", 1, 1, 1 << 25, layer=0)],
    "nothing to import": [],
}


@pytest.mark.parametrize("message", CONTRADICTIONS)
def test_contradictions_leave_no_file(tmp_path: Path, message: str) -> None:
    with pytest.raises(UserError, match=message):
        assembled(tmp_path, *CONTRADICTIONS[message])
    assert list(tmp_path.iterdir()) == []


def test_an_error_while_loading_leaves_no_file(tmp_path: Path) -> None:
    def fail() -> np.ndarray:
        raise UserError("the log is damaged")

    broken = Piece(0, Key(None, "logits"), (2, 8), "float32", fail)
    with pytest.raises(UserError, match="damaged"):
        assembled(tmp_path, piece(0, "embd", 2, 8), broken)
    assert list(tmp_path.iterdir()) == []


def test_a_cut_off_source_gives_an_incomplete_trace(tmp_path: Path) -> None:
    with assembled(tmp_path, *run(5, 1), end="killed") as trace:
        assert not trace.complete
        assert trace.has(Key(0, "q"), 1)


def test_no_more_than_the_buffer_is_in_memory(tmp_path: Path) -> None:
    def values() -> np.ndarray:
        return np.ones((1, 1 << 20), np.float32)  # 4 MB

    pieces = [Piece(step, Key(None, "embd"), (1, 1 << 20), "float32", values) for step in range(200)]
    tracemalloc.start()
    assemble(Dump(pieces), tmp_path / "a.h5")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 450e6  # of 800 MB: the writer's buffers
