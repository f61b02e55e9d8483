"""The cause of a first divergence, found by replay on the side that is at fault."""

from collections.abc import Callable

import pytest
from tensortrace.analyze.cause import Injection
from tensortrace.analyze.compare import compare
from tensortrace.analyze.find import name_causes
from tensortrace.tracer.gguf import Model
from tensortrace.tracer.selection import Selection
from tensortrace.tracer.trace import Trace

Record = Callable[..., Trace]

FAULTS = {
    "attn_scale=0.5": "scores",
    "rope_pairing": "q_rope",
    "rope_theta=500000": "q_rope",
    "rope_position": "q_rope",
    "causal_mask": "scores",
    "gqa_map": "scores",
    "norm_eps=1e-3": "attn_norm",
    "norm_plus_one": "attn_norm",
    "qkv_bias": "q",
    "kv_slot": "scores",
    "dequant_layout": "q",
    "softmax_no_max": "m",
    "norm_placement": "resid_mid",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_cause_on_our_side(record_tiny: Record, tiny_model: Model, fault: str) -> None:
    injection = Injection.parse(fault)
    ours, reference = record_tiny(n_new=3, change=injection.apply), record_tiny(n_new=3)
    named = name_causes(compare(ours, reference), ours, reference, tiny_model)
    assert named.exit_code == 1
    assert named.first.tensor == FAULTS[fault]
    best = named.causes[0]
    assert best.id == injection.cause.id
    assert best.confidence > 0.99
    assert best.evidence.startswith("ours: ")
    assert best.fix


def test_the_reference_can_be_the_one_at_fault(record_tiny: Record, tiny_model: Model) -> None:
    ours, reference = record_tiny(), record_tiny(change=Injection.parse("gqa_map@1").apply)
    named = name_causes(compare(ours, reference), ours, reference, tiny_model)
    assert [(cause.id, cause.layer) for cause in named.causes] == [("gqa_map", 1)]
    assert named.causes[0].evidence.startswith("the reference: ")
    assert "in layer 1 (of 2)" in named.causes[0].evidence


def test_an_unknown_fault_says_what_was_established(record_tiny: Record, tiny_model: Model) -> None:
    def change(graph):
        def squash(compute):
            return lambda *operands, **params: compute(*operands, **params) ** 3

        return graph.replace(lambda op: op.wrapped(squash) if op.out.name == "up" else op)

    ours, reference = record_tiny(change=change), record_tiny()
    named = name_causes(compare(ours, reference), ours, reference, tiny_model)
    assert [cause.id for cause in named.causes] == ["unknown"]
    assert "does not follow from its own inputs" in named.causes[0].evidence


def test_agreement_has_no_cause(record_tiny: Record, tiny_model: Model) -> None:
    a, b = record_tiny(), record_tiny(softmax="two-pass")
    assert name_causes(compare(a, b), a, b, tiny_model).causes == []


def test_with_few_tensors_recorded_the_segment_is_replayed(record_tiny: Record, tiny_model: Model) -> None:
    few = Selection(tensors="q_rope,k_rope,scores,resid_out")
    change = Injection.parse("rope_pairing@1").apply
    ours, reference = record_tiny(selection=few, change=change), record_tiny(selection=few)
    named = name_causes(compare(ours, reference), ours, reference, tiny_model)
    assert (named.first.layer, named.first.tensor) == (1, "q_rope")
    assert named.causes[0].id == "rope_pairing"
