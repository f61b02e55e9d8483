"""Hypotheses: values that are fitted, causes that cannot be told apart, and what is told of them."""

from collections.abc import Callable

import numpy as np
import pytest
from tensortrace.analyze.cause import Injection
from tensortrace.analyze.hypothesis import Hypothesis, explain, golden_section
from tensortrace.analyze.replay import Replay
from tensortrace.tracer.gguf import Model
from tensortrace.tracer.names import Key
from tensortrace.tracer.selection import Selection
from tensortrace.tracer.trace import Trace

Record = Callable[..., Trace]
IDS = tuple(range(100, 124))


@pytest.fixture
def explained(record_tiny: Record, tiny_model: Model) -> Callable[..., list[Hypothesis]]:
    def run(fault: str, name: str, step: int = 0, tensors: str | None = None) -> list[Hypothesis]:
        change, selection = Injection.parse(fault).apply, Selection(tensors=tensors)
        replay = Replay(record_tiny(IDS, n_new=3, tile=8, change=change, selection=selection), tiny_model)
        key = Key(1, name)
        return explain(replay, replay.graph.producer(key), step, key)

    return run


@pytest.mark.parametrize(
    ("fault", "name", "value"),
    [
        ("rope_theta@1=31337", "q_rope", 31337),
        ("rope_scaling@1=3.7", "k_rope", 3.7),
        ("attn_scale@1=0.1234", "scores", 0.1234),
        ("attn_softcap@1=1.7", "scores", 1.7),
        ("norm_eps@1=0.0123", "attn_norm", 0.0123),
        ("resid_mult@1=0.31", "resid_mid", 0.31),
        ("value_scale@1=0.43", "attn", 0.43),
        ("attn_sink@1=0.77", "l", 0.77),
    ],
)
def test_continuous_values_are_fitted(explained: Callable, fault: str, name: str, value: float) -> None:
    best = explained(fault, name)[0]
    assert best.cause.id == Injection.parse(fault).cause.id
    assert best.value == pytest.approx(value, rel=1e-3)
    assert best.explained > 0.9999


@pytest.mark.parametrize(
    ("fault", "name", "value"),
    [
        ("rope_partial@1=10", "q_rope", 10),
        ("rope_position@1=all+17", "q_rope", "all+17"),
        ("rope_stale_table@1=11", "q_rope", 11),
        ("kv_slot@1=-7", "scores", "-7"),
        ("kv_stale@1=6<3", "scores", "6<3"),
        ("kv_stale@1=4-9", "scores", "4-9"),
        ("pad_keys@1=23", "l", 23),
        ("swa_layers@1=6", "scores", 6),
        ("tile_tail@1,up=21", "up", 21),
        ("tp_shard@1,q=4", "q", 4),
        ("weight_other@1,up=layer0", "up", "layer-1"),  # the same one, in layer 1
        ("weight_heads@1,q=2-0-3-1", "q", "2-0-3-1"),
        ("gqa_map@1=1-0-0-1", "scores", "1-0-0-1"),
        ("fa_merge@1=l/4", "attn", "l/4"),
        ("logits_row=2", "logits", 2),
    ],
)
def test_countable_values_are_found(
    record_tiny: Record, tiny_model: Model, fault: str, name: str, value: float | str
) -> None:
    change = Injection.parse(fault).apply
    replay = Replay(record_tiny(IDS, n_new=3, tile=8, change=change), tiny_model)
    key = Key(None if name == "logits" else 1, name)
    best = explain(replay, replay.graph.producer(key), 0, key)[0]
    assert (best.cause.id, best.value) == (Injection.parse(fault).cause.id, value)


@pytest.mark.parametrize(
    ("fault", "name", "kept", "value"),
    [
        ("norm_eps@attn_norm=3e-5", "q_rope", "q_rope,k_rope,scores,resid_out", 3e-5),
        ("attn_scale@1=0.3", "attn", "attn_norm,k,k_rope,v,attn", 0.3),
        ("rope_theta@1,k_rope=37000", "scores", "attn_norm,q_rope,scores,attn", 37000),
        ("attn_sink@1=1.5", "attn", "q_rope,k_rope,v,attn", 1.5),
        ("swa_layers@1=5", "attn", "q_rope,k_rope,v,attn", 5),
        ("tile_tail@1,q=3", "q_rope", "attn_norm,q_rope", 3),
        ("kv_slot@1=5", "attn", "q_rope,k_rope,v,attn", "5"),
    ],
)
def test_values_are_found_where_the_faulty_tensor_was_not_recorded(
    explained: Callable, fault: str, name: str, kept: str, value: float | str
) -> None:
    best = explained(fault, name, tensors=kept)
    found = next(each for each in best if each.cause.id == Injection.parse(fault).cause.id)
    assert found in best[:2]
    assert found.value == (value if isinstance(value, str) else pytest.approx(value, rel=5e-3))
    assert found.explained > 0.95


@pytest.mark.parametrize(
    "kept", ["v,attn_norm,resid_out", "q_rope,k_rope,scores,resid_out", "ffn_norm,logits"]
)
@pytest.mark.parametrize(("fault", "value"), [("embed_scale=0.25", 0.25), ("embed_offset=-3", -3)])
def test_a_fault_of_the_embedding_is_found_further_on(
    record_tiny: Record, tiny_model: Model, fault: str, value: float, kept: str
) -> None:
    change, selection = Injection.parse(fault).apply, Selection(tensors=kept)
    replay = Replay(record_tiny(IDS, n_new=3, change=change, selection=selection), tiny_model)
    key = next(out for op in replay.graph.ops for out in op.outputs if replay.trace.has(out, 0))
    best = explain(replay, replay.graph.producer(key), 0, key)[0]
    assert best.cause.id == Injection.parse(fault).cause.id
    assert best.value == pytest.approx(value, rel=1e-2)


def test_what_else_was_recorded_decides(explained: Callable) -> None:
    """A residual that is missing from resid_out alone leaves ffn_norm right."""
    best = explained("buffer_alias@1,resid_out", "resid_out", tensors="attn,ffn_norm,act,resid_out")[0]
    assert (best.cause.id, best.value) == ("buffer_alias", "attn_out")


def test_what_scores_alone_cannot_tell_apart_is_told_together(explained: Callable) -> None:
    """A wrong scale of K in the cache is a wrong softmax scale, until V shows it (see bug-classes)."""
    best = explained("kv_quant_scale@1=2", "scores", tensors="q_rope,k_rope,scores")[0]
    assert {best.cause.id, *best.equals} >= {"attn_scale", "kv_quant_scale"}
    assert "K and V as" in best.cause.tell
    whole = explained("kv_quant_scale@1=2", "scores")[0]
    assert (whole.cause.id, whole.equals) == ("kv_quant_scale", ())


def test_a_value_from_a_list_comes_before_one_that_was_fitted(explained: Callable) -> None:
    """Rotated twice is rotated by half the scaling, too: what needs no value explains it better."""
    found = explained("rope_twice@1", "q_rope")
    assert (found[0].cause.id, found[0].equals) == ("rope_twice", ())
    assert "rope_scaling" in [hypothesis.cause.id for hypothesis in found]


def test_the_op_of_a_segment_that_holds_the_fault_is_told(explained: Callable) -> None:
    best = explained("activation@1=relu", "resid_out", tensors="q_rope,k_rope,scores,resid_out")[0]
    assert (best.cause.id, best.places, str(best)) == ("activation", ("act",), "activation (relu)")


def test_a_fault_of_decode_steps_is_told_from_one_of_all(explained: Callable) -> None:
    assert str(explained("rope_position@1=decode+1", "q_rope", step=1)[0]).endswith("(decode+1)")
    assert str(explained("rope_position@1=all+1", "q_rope", step=1)[0]).endswith("(all+1)")


@pytest.mark.parametrize("value", [0.3, 1.9, -2.5])
def test_golden_section(value: float) -> None:
    start = float(np.sign(value))
    assert golden_section(lambda x: abs(x - value), start) == pytest.approx(value, rel=1e-6)
