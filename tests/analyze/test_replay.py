"""Ops replayed in float64 from what a trace recorded, and the causes found by it."""

from collections.abc import Callable

import numpy as np
import pytest
from tensortrace.analyze.cause import Injection
from tensortrace.analyze.hypothesis import explain, layers_explained, wrongness
from tensortrace.analyze.replay import NotRecorded, Replay, residual
from tensortrace.tracer.gguf import Model
from tensortrace.tracer.graph import Op
from tensortrace.tracer.names import Key
from tensortrace.tracer.selection import Selection
from tensortrace.tracer.trace import Trace

Record = Callable[..., Trace]
ROUNDING = 2e-6  # relative, of one float32 op against float64

FAULTS = [  # the fault, the tensor it shows in first, the layers it is put into
    ("attn_scale=0.5", "scores", [0, 1]),
    ("attn_scale@1=0.3", "scores", [1]),
    ("rope_pairing", "q_rope", [0, 1]),
    ("rope_theta=500000", "q_rope", [0, 1]),
    ("rope_position", "q_rope", [0, 1]),
    ("causal_mask", "scores", [0, 1]),
    ("gqa_map", "scores", [0, 1]),
    ("norm_eps=1e-3", "attn_norm", [0, 1]),
    ("norm_plus_one@attn_norm", "attn_norm", [0, 1]),
    ("qkv_bias", "q", [0, 1]),
    ("kv_slot", "scores", [0, 1]),
    ("dequant_layout@q", "q", [0, 1]),
    ("softmax_no_max", "m", [0, 1]),
    ("norm_placement", "resid_mid", [0, 1]),
]


def recorded_ops(replay: Replay) -> list[tuple[Op, int]]:
    return [(op, step.index) for step in replay.trace.flushed for op in replay.graph.ops]


def first_wrong(replay: Replay) -> tuple[Op, int, Key]:
    for op, step in recorded_ops(replay):
        wrong = [key for key, error in wrongness(replay, op, step).items() if error > 1e-5]
        if wrong:
            return op, step, next(key for key in op.outputs if key in wrong)
    raise AssertionError("every op reproduces its output")


def test_every_op_of_a_healthy_trace_reproduces_its_output(record_tiny: Record, tiny_model: Model) -> None:
    replay = Replay(record_tiny(n_new=4, tile=4), tiny_model)
    for op, step in recorded_ops(replay):
        assert max(wrongness(replay, op, step).values()) < ROUNDING, op.out


def test_what_was_not_recorded_is_replayed_from_what_was(record_tiny: Record, tiny_model: Model) -> None:
    whole = record_tiny(n_new=3)
    few = record_tiny(n_new=3, selection=Selection(tensors="resid_out,scores,logits"))
    replay = Replay(few, tiny_model)
    attend = replay.graph.producer(Key(1, "scores"))
    for step in few.flushed:
        again = replay.compute(attend, step.index)[Key(1, "scores")]
        assert residual(whole.read(Key(1, "scores"), step.index), again) < 1e-4


def test_attention_over_tokens_that_were_left_out_cannot_be_replayed(
    record_tiny: Record, tiny_model: Model
) -> None:
    replay = Replay(record_tiny(n_new=3, selection=Selection(tokens="0-3,8-")), tiny_model)
    with pytest.raises(NotRecorded, match="for some tokens only"):
        replay.compute(replay.graph.producer(Key(0, "attn")), 1)


@pytest.mark.parametrize(("fault", "tensor", "layers"), FAULTS, ids=[fault for fault, _, _ in FAULTS])
def test_the_cause_is_named(
    record_tiny: Record, tiny_model: Model, fault: str, tensor: str, layers: list[int]
) -> None:
    injection = Injection.parse(fault)
    replay = Replay(record_tiny(n_new=3, change=injection.apply), tiny_model)
    op, step, key = first_wrong(replay)
    assert key.name == tensor
    best = explain(replay, op, step, key)[0]
    assert best.cause.id == injection.cause.id
    assert best.explained > 0.999
    assert layers_explained(replay, best) == layers


def test_a_fault_of_no_known_kind_is_explained_by_none(record_tiny: Record, tiny_model: Model) -> None:
    def scramble(compute):
        return lambda *operands, **params: np.sin(7 * compute(*operands, **params))

    def change(graph):
        return graph.replace(lambda op: op.wrapped(scramble) if op.out == Key(1, "q") else op)

    replay = Replay(record_tiny(change=change), tiny_model)
    op, step, key = first_wrong(replay)
    assert key == Key(1, "q")
    assert explain(replay, op, step, key) == []


def test_residual_counts_masks_that_differ_as_wholly_wrong() -> None:
    a = np.array([1.0, -np.inf, np.nan])
    assert residual(a, a.copy()) == 0
    assert residual(a, np.array([1.0, 2.0, np.nan])) == np.inf
    assert residual(a, np.array([3.0, -np.inf, np.nan])) == 2
