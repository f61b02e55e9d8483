"""Choosing what is recorded."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensortrace.tracer.errors import UserError
from tensortrace.tracer.format import plan_steps
from tensortrace.tracer.names import Key
from tensortrace.tracer.selection import Selection, parse_ranges

KEYS = [
    Key(None, "embd"),
    *(Key(i, name) for i in range(4) for name in ("q", "q_rope", "scores")),
    Key(None, "logits"),
]


def chosen(**options: str) -> set[str]:
    return {str(key) for key in Selection(**options).keys(KEYS)}


def test_everything_by_default() -> None:
    assert Selection().keys(KEYS) == KEYS
    assert Selection().token_indices(plan_steps(4, 2)) is None


def test_layers_keep_the_global_tensors() -> None:
    assert chosen(layers="1") == {"embd", "logits", "L01 q", "L01 q_rope", "L01 scores"}
    assert chosen(layers="0-1,3-", tensors="q") == {"L00 q", "L01 q", "L03 q"}


def test_globs() -> None:
    assert chosen(tensors="q*, logits", layers="2") == {"L02 q", "L02 q_rope", "logits"}
    assert chosen(tensors="*[!s]", layers="0") == {"embd", "L00 q", "L00 q_rope"}


def test_order_stays_that_of_execution() -> None:
    keys = Selection(layers="3,0", tensors="logits,q").keys(KEYS)
    assert keys == [Key(0, "q"), Key(3, "q"), Key(None, "logits")]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"layers": "9"}, "--layers 9 matches no layer"),
        ({"layers": "x"}, "not a list of numbers"),
        ({"layers": "-1"}, "not a list of numbers"),
        ({"layers": "²"}, "not a list of numbers"),
        ({"layers": ""}, "empty"),
        ({"layers": "3-1"}, "backwards"),
        ({"tensors": "qq"}, "'qq' matches none of: embd, logits, q, q_rope, scores"),
        ({"tensors": "q,nothing"}, "'nothing' matches none"),
        ({"tensors": " , "}, "--tensors is empty"),
    ],
    ids=str,
)
def test_what_chooses_nothing_is_a_mistake(options: dict, says: str) -> None:
    with pytest.raises(UserError, match=says):
        Selection(**options).keys(KEYS)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 9)), min_size=1))
def test_ranges_mean_what_they_say(pieces: list[tuple[int, int]]) -> None:
    text = ",".join(f"{first}-{first + more}" if more else str(first) for first, more in pieces)
    expected = {n for first, more in pieces for n in range(first, first + more + 1)}
    assert {n for r in parse_ranges(text, "--layers") for n in r} == expected


def test_tokens_and_phases() -> None:
    steps = plan_steps(4, 4)  # tokens 0 to 3, then 4, 5, 6
    assert Selection(tokens="0,2-4,6-").token_indices(steps) == [0, 2, 3, 4, 6]
    assert Selection(phase="decode").token_indices(steps) == [4, 5, 6]
    assert Selection(tokens="3-4", phase="prefill").token_indices(steps) == [3]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"tokens": "7-"}, r"no token of this run is selected \(it has 7\)"),
        ({"tokens": "0", "phase": "decode"}, "no token"),
        ({"phase": "both"}, "prefill or decode"),
        ({"tokens": "a"}, "--token-range"),
        ({"tokens": ""}, "--token-range is empty"),
    ],
    ids=str,
)
def test_what_selects_no_token_is_a_mistake(options: dict, says: str) -> None:
    with pytest.raises(UserError, match=says):
        Selection(**options).token_indices(plan_steps(4, 4))
