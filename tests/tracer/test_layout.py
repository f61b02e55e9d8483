"""Where tensors lie: every recorded row of every step has a place of its own."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensortrace.tracer.errors import TraceError
from tensortrace.tracer.format import Step, TensorSpec, plan_steps
from tensortrace.tracer.layout import Layout
from tensortrace.tracer.names import Key

Q = TensorSpec(Key(0, "q"), ("token", "head"), {"head": 3})
PROBS = TensorSpec(Key(0, "probs"), ("head", "query", "key"), {"head": 3})


@given(st.integers(1, 12), st.integers(1, 6), st.none() | st.integers(1, 6), st.data())
def test_every_row_has_one_place(prompt: int, new: int, chunk: int | None, data: st.DataObject) -> None:
    steps = plan_steps(prompt, new, chunk)
    tokens = data.draw(st.sets(st.integers(0, steps[-1].kv_len - 1)))
    layout = Layout(steps, np.array(sorted(tokens), np.int64))
    assert sum(layout.rows(step.index) for step in steps) == len(tokens)

    rows = [layout.place(Q, step.index) for step in steps]
    assert {place.shape for place in rows} == {(len(tokens), 3)}
    taken = [row for place in rows for row in range(place.first, place.first + place.rows)]
    assert taken == list(range(len(tokens)))

    assert [place.path for place in layout.datasets(Q)] == ["/layers/00/q"]

    blocks = [layout.place(PROBS, step.index) for step in steps if layout.rows(step.index)]
    pieces = [(place.path, row) for place in blocks for row in range(place.first, place.first + place.rows)]
    assert len(set(pieces)) == len(pieces)
    assert all(place.first + place.rows <= place.shape[0] for place in blocks)
    made = [(place.path, place.shape) for place in layout.datasets(PROBS)]
    assert len(made) == len(set(made))
    assert set(made) == {(place.path, place.shape) for place in blocks}


def test_steps_whose_rows_follow_each_other() -> None:
    """Steps 1 to 6 decode tokens 3 to 8, of which token 5 is not recorded."""
    layout = Layout(plan_steps(3, 7), np.array([0, 1, 2, 3, 4, 6, 7, 8]))
    assert layout.neighbours([1, 2, 4, 5, 6]) == [[1, 2, 4, 5, 6]]
    assert layout.neighbours([1, 4, 5, 2, 6]) == [[1], [4, 5], [2], [6]]
    assert layout.neighbours([2]) == [[2]]


def test_names_of_blocks() -> None:
    one, three = plan_steps(6, 3), plan_steps(6, 3, chunk=2)
    paths = [Layout(steps, np.arange(8)).place(PROBS, 1).path for steps in (one, three)]
    assert paths == ["/layers/00/probs/decode", "/layers/00/probs/prefill_0001"]
    assert Layout(one, np.arange(8)).place(PROBS, 0).path == "/layers/00/probs/prefill"


@pytest.mark.parametrize(
    "steps",
    [
        [],
        [Step(1, "prefill", 0, 4)],
        [Step(0, "warm-up", 0, 4)],
        [Step(0, "prefill", -1, 4)],
        [Step(0, "prefill", 0, 0)],
        [Step(0, "prefill", 0, 4), Step(1, "decode", 4, 2)],
    ],
    ids=str,
)
def test_impossible_steps_are_refused(steps: list[Step]) -> None:
    with pytest.raises(TraceError):
        Layout(steps, np.arange(4))


@pytest.mark.parametrize("tokens", [[1, 1], [2, 1], [-1, 0], [0.0, 1.0], [[0]]], ids=str)
def test_recorded_tokens_ascend(tokens: list) -> None:
    with pytest.raises(TraceError, match="ascending"):
        Layout(plan_steps(4, 1), np.array(tokens))
