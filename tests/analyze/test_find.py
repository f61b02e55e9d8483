"""The cause of a first divergence, found by replay on the side that is at fault."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ggufs import write_gguf
from injected import inject
from recording import record_trace
from rich.console import Console
from tensortrace.analyze.cause import Injection
from tensortrace.analyze.compare import compare
from tensortrace.analyze.find import name_causes
from tensortrace.analyze.markdown import sheet
from tensortrace.analyze.report import WEAKER, render
from tensortrace.tracer.gguf import Model
from tensortrace.tracer.graph import Graph
from tensortrace.tracer.names import Key
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


HALF, REST = "embd,q,q_rope,probs,attn_out,ffn_norm,up,resid_out", "attn_norm,k,k_rope,scores,attn,gate,act"


@pytest.mark.parametrize(("ours", "theirs"), [(HALF, None), (None, HALF), (HALF, REST), (REST, HALF)])
@pytest.mark.parametrize(
    "fault", ["rope_pairing@1", "attn_scale@1=0.3", "norm_eps@1=1e-3", "activation@1=relu"]
)
def test_half_of_the_tensors_on_one_side_or_another_half_on_either(
    record_tiny: Record, tiny_model: Model, ours: str | None, theirs: str | None, fault: str
) -> None:
    """The logits are all that both sides always have."""
    sides = [Selection(tensors=names and f"{names},logits") for names in (ours, theirs)]
    faulty = record_tiny(selection=sides[0], change=Injection.parse(fault).apply)
    for a, b in ((faulty, healthy := record_tiny(selection=sides[1])), (healthy, faulty)):
        named = name_causes(compare(a, b), a, b, tiny_model)
        assert named.first is not None
        assert fault.partition("@")[0] in {named.causes[0].id, *named.causes[0].evidence.split()}
        assert named.causes[0].layer in (1, None)
        assert named.causes[0].evidence.startswith("ours" if a is faulty else "the reference")


@pytest.mark.parametrize("fault", ["scores_fp16@1=bfloat16", "norm_eps@0=1e-3", "kv_dup@1"])
def test_a_fault_not_much_larger_than_the_rounding_of_the_file(
    record_tiny: Record, tiny_model: Model, fault: str
) -> None:
    """What is left is rounding, and so surely less that chance is no explanation."""
    ours, reference = (
        record_tiny(tuple(range(100, 124)), storage="float16", change=change)
        for change in (Injection.parse(fault).apply, lambda graph: graph)
    )
    named = name_causes(compare(ours, reference), ours, reference, tiny_model)
    assert named.causes[0].id == fault.partition("@")[0]


def test_two_faults_of_one_trace_are_both_named(record_tiny: Record, tiny_model: Model) -> None:
    """The second would be hidden by what it inherits from the first."""
    ours = record_tiny(n_new=2, change=inject("norm_eps@0,attn_norm=1e-3", "rope_pairing@1,q_rope"))
    reference = record_tiny(n_new=2)
    named = name_causes(compare(ours, reference), ours, reference, tiny_model)
    assert [(c.id, c.layer) for c in named.causes if c.confidence > 0.99] == [
        ("norm_eps", 0),
        ("rope_pairing", 1),
    ]


def test_a_fault_on_either_side(record_tiny: Record, tiny_model: Model) -> None:
    ours = record_tiny(n_new=2, change=inject("attn_scale@0=0.3"))
    reference = record_tiny(n_new=2, change=inject("gqa_map@1"))
    named = name_causes(compare(ours, reference), ours, reference, tiny_model)
    sides = {cause.id: cause.evidence.split(":")[0] for cause in named.causes}
    assert sides == {"attn_scale": "ours", "gqa_map": "the reference"}
    assert "ours is wrong" in named.evidence[-1]


def test_the_error_that_each_side_adds(record_tiny: Record, tiny_model: Model) -> None:
    """Inherited errors are not added ones, on whichever side; also where steps differ."""
    ours = record_tiny(n_new=2, chunk=4)
    reference = record_tiny(n_new=2, change=inject("norm_plus_one@0,attn_norm"))
    named = name_causes(compare(ours, reference), ours, reference, tiny_model)
    rows = [row for row in named.rows() if row.status in ("diverged", "inherited")]
    assert len(rows) > 50
    for row in rows:
        assert row.added_a is not None
        assert row.added_b is not None
        assert row.added_a < 1e-5
        wrong = row.key == Key(0, "attn_norm")
        assert (row.added_b > 0.1) if wrong else (row.added_b < 1e-5)
    assert "the reference is wrong" in named.evidence[-1]
    said = named.to_json()
    assert said["replayed"]
    assert {"added_a", "added_b"} <= said["tensors"][0].keys()


def test_without_a_model_nothing_is_replayed(record_tiny: Record) -> None:
    found = compare(record_tiny(change=inject("gqa_map")), record_tiny())
    assert not found.to_json()["replayed"]
    assert {row.added_a for row in found.rows()} == {None}


def test_weights_of_another_model_are_no_fault_of_an_op(
    record_tiny: Record, tiny_model: Model, tmp_path: Path
) -> None:
    """Both engines do as their weights say: the file that is given tells whose those are."""
    other = Model(write_gguf(tmp_path / "other.gguf", seed=1))
    record_trace(other, tmp_path / "o.h5")
    ours, reference = Trace(tmp_path / "o.h5"), record_tiny()
    named = name_causes(compare(ours, reference), ours, reference, tiny_model)
    assert "ours is wrong" in named.evidence[-1]
    assert any("model files differ" in note for note in named.notes)


def test_what_cannot_be_replayed_is_said(record_tiny: Record, tiny_model: Model) -> None:
    some = Selection(tokens="2-", tensors="q_rope,k_rope,scores")
    ours, reference = record_tiny(selection=some, change=inject("gqa_map")), record_tiny(selection=some)
    named = name_causes(compare(ours, reference), ours, reference, tiny_model)
    assert [cause.id for cause in named.causes] == ["unknown"]
    assert "L00 scores could not be replayed" in named.evidence[-1]
    assert "recorded for some tokens only" in named.evidence[-1]


def test_what_is_established_of_an_unknown_fault(record_tiny: Record, tiny_model: Model) -> None:
    """Where it lies, and what it looks like."""

    def change(graph: Graph) -> Graph:
        def blur(compute):
            def blurred(*operands, **params):
                out = compute(*operands, **params)
                out[:, 2] = np.sin(3 * out[:, 2])
                return out

            return blurred

        return graph.replace(lambda op: op.wrapped(blur) if op.out == Key(1, "q") else op)

    few = Selection(tensors="attn_norm,q_rope,scores")
    ours, reference = record_tiny(change=change, selection=few), record_tiny(selection=few)
    (cause,) = name_causes(compare(ours, reference), ours, reference, tiny_model).causes
    assert cause.id == "unknown"
    assert "the fault is in one of L01 q, L01 q_rope, as nothing between was recorded" in cause.evidence
    assert "only in head 2 (of 4)" in cause.evidence


def test_causes_that_cannot_be_told_apart_are_told_together(record_tiny: Record, tiny_model: Model) -> None:
    few = Selection(tensors="q_rope,k_rope,scores")
    ours = record_tiny(change=inject("kv_quant_scale@1=2"), selection=few)
    reference = record_tiny(selection=few)
    causes = name_causes(compare(ours, reference), ours, reference, tiny_model).causes
    assert {cause.id for cause in causes[:2]} == {"attn_scale", "kv_quant_scale"}
    assert "would give the same: to tell them apart record K and V as" in causes[0].evidence


def test_the_report_shows_which_side_adds_the_error(record_tiny: Record, tiny_model: Model) -> None:
    ours, reference = record_tiny(change=inject("gqa_map@1")), record_tiny()
    plain = compare(ours, reference)
    named = name_causes(plain, ours, reference, tiny_model)
    console = Console(width=200)
    for shown, text in ((False, plain), (True, named)):
        with console.capture() as capture:
            console.print(render(text))
        assert ("added a" in capture.get()) is shown
        assert (WEAKER in capture.get()) is not shown
        assert ("explains 100.0000% of the difference" in capture.get()) is shown
    assert "explains 100.0000% of the difference" in sheet(named)
    assert WEAKER.split(";")[0] in sheet(plain)
