"""Segments between recorded tensors: replayed with ops changed, near and far from what was recorded."""

from collections.abc import Callable

import numpy as np
import pytest
from tensortrace.analyze.cause import Injection, causes
from tensortrace.analyze.replay import Replay
from tensortrace.analyze.segment import CLASH, Case, Segment, distance
from tensortrace.tracer.gguf import Model
from tensortrace.tracer.graph import Op
from tensortrace.tracer.names import Key
from tensortrace.tracer.selection import Selection
from tensortrace.tracer.trace import Trace

Record = Callable[..., Trace]
FEW = Selection(tensors="q_rope,k_rope,scores,resid_out")


def segment(replay: Replay, name: str, layer: int = 1, step: int = 0) -> Segment:
    op = replay.graph.producer(Key(layer, name))
    assert op is not None
    return Segment(replay, op, step)


def test_a_segment_ends_at_what_was_recorded(record_tiny: Record, tiny_model: Model) -> None:
    whole, few = Replay(record_tiny(), tiny_model), Replay(record_tiny(selection=FEW), tiny_model)
    assert [op.out.name for op in segment(whole, "q_rope").ops] == ["q_rope"]
    assert [op.out.name for op in segment(few, "q_rope").ops] == ["attn_norm", "q", "q_rope"]
    names = "attn_norm v attn attn_out resid_mid ffn_norm gate up act ffn_out resid_out"
    assert [op.out.name for op in segment(few, "resid_out").ops] == names.split()


@pytest.mark.parametrize("step", [0, 2])
def test_it_gives_what_a_fault_in_it_would(record_tiny: Record, tiny_model: Model, step: int) -> None:
    """A change of an op that was not recorded gives what a run with that fault recorded further on."""
    change = Injection.parse("rope_on_v@1").apply
    faulty = Replay(record_tiny(n_new=4, selection=FEW, change=change), tiny_model)
    found = segment(faulty, "resid_out", step=step)
    (attend,) = (op for op in found.ops if op.kind == "attention")
    targets = found.targets(step)
    assert targets == [(Key(1, "resid_out"), step)]
    assert found.off({}, targets)[0] > 1e-2
    changed = causes()["rope_on_v"].change(attend, None, tiny_model)
    assert found.off({attend.out: changed}, targets)[0] < 2e-6


def test_a_case_knows_what_was_recorded_and_what_is_right(record_tiny: Record, tiny_model: Model) -> None:
    replay = Replay(record_tiny(n_new=3, change=Injection.parse("attn_scale@1=0.5").apply), tiny_model)
    found = segment(replay, "attn", step=1)
    case = Case(found, found.op)
    scores, right = case.recorded("scores"), case.right("scores")
    seen = np.isfinite(right)
    np.testing.assert_allclose(scores[seen], 2 * right[seen], rtol=1e-4, atol=1e-5)
    assert [len(array) for array in case.inputs] == [1, 11, 11]  # the query, and the cache
    few = segment(Replay(record_tiny(selection=FEW), tiny_model), "resid_out")
    assert Case(few, few.op).recorded("attn") is None


def test_an_output_that_a_fault_does_not_give_counts_as_right(record_tiny: Record, tiny_model: Model) -> None:
    found = segment(Replay(record_tiny(), tiny_model), "attn")

    def without_l(compute):
        def attend(*operands, **params):
            return {name: array for name, array in compute(*operands, **params).items() if name != "l"}

        return attend

    changed: Op = found.op.wrapped(without_l)
    assert found.off({found.op.out: changed}, [(Key(1, "l"), 0)])[0] < 2e-6


def test_distance() -> None:
    a = np.array([3.0, 4.0])
    assert distance(a, a) == 0
    assert distance(a, np.array([3.0, 3.0])) == pytest.approx(1 / 5)
    assert distance(a, a[:1]) == np.inf
    assert distance(np.zeros(2), np.ones(2)) == pytest.approx(2**0.5)
    # masked keys and NaN are equal to themselves, and CLASH times the RMS away from numbers
    masked = np.array([1.0, -np.inf, np.nan])
    assert distance(masked, np.array([1.0, -3e38, np.nan])) == 0
    assert distance(masked, np.array([1.0, -np.inf, 0.0])) == pytest.approx(CLASH)
    assert distance(np.array([np.inf, 1.0]), np.array([np.inf, 1.0])) == 0
