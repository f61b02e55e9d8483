"""The decision tree for Q, K and scores on real traces: all four scenarios, each by more than one fault."""

from collections.abc import Callable
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from ggufs import write_gguf
from recording import record_trace
from synthetic import write_trace
from tensortrace.analyze.cause import Injection, with_inputs
from tensortrace.analyze.compare import Comparison, compare
from tensortrace.analyze.products import products
from tensortrace.tracer.gguf import Model
from tensortrace.tracer.graph import Graph, Op
from tensortrace.tracer.names import Key
from tensortrace.tracer.selection import Selection
from tensortrace.tracer.trace import Trace


@pytest.fixture(scope="module")
def loud(tmp_path_factory) -> Path:
    """A model with large Q and K by nature: its gain before attention is 8."""
    gain = np.full(64, 8, np.float32)
    path = tmp_path_factory.mktemp("models") / "loud.gguf"
    return write_gguf(path, tensors={f"blk.{layer}.attn_norm.weight": gain for layer in (0, 1)})


@pytest.fixture
def record_loud(loud, tmp_path) -> Callable[..., Trace]:
    number, model = count(), Model(loud)

    def recorded(**kwargs) -> Trace:
        path = tmp_path / f"loud{next(number)}.h5"
        record_trace(model, path, n_new=1, **kwargs)
        return Trace(path)

    return recorded


def inject(text: str) -> Callable[[Graph], Graph]:
    return lambda graph: Injection.parse(text).apply(graph)


def transpose_q(graph: Graph) -> Graph:
    """The fault of reading a square weight by columns."""

    def change(op: Op) -> Op:
        transposed = with_inputs(lambda x, weight: (x, weight.T))
        return op.wrapped(transposed) if op.out.name == "q" else op

    return graph.replace(change)


def answers(comparison: Comparison) -> dict[str, bool | None]:
    return {name: answer.yes for name, answer in comparison.scenario.hypotheses.items()}


def test_1_large_on_both_sides_and_nothing_wrong(record_loud):
    found = compare(record_loud(), record_loud(softmax="two-pass"))
    assert (found.verdict, found.scenario.number) == ("rounding", 1)
    assert "normal for this model" in found.scenario.sentence
    assert answers(found) == {"A": False, "B": False, "C": False}


def test_1_large_on_both_sides_and_a_fault_in_softmax(record_loud):
    found = compare(record_loud(change=inject("softmax_no_max@1")), record_loud())
    assert (found.scenario.number, found.first.key) == (1, Key(1, "m"))
    assert "softmax, V or the output" in found.scenario.sentence


def test_2_ours_large_and_the_reference_small(record_loud, record_tiny):
    found = compare(record_loud(), record_tiny(n_new=1))
    assert (found.scenario.number, found.first.key) == (2, Key(0, "attn_norm"))
    assert "a normalisation or bias is missing" in found.scenario.sentence
    assert "L00 attn_norm" in found.scenario.sentence
    assert answers(found)["A"]


def test_2_needs_no_more_than_q_and_scores(record_loud, record_tiny):
    selection = Selection(tensors="q,scores")
    found = compare(record_loud(selection=selection), record_tiny(n_new=1, selection=selection))
    assert (found.scenario.number, found.first.key) == (2, Key(0, "q"))


@pytest.mark.parametrize("fault", ["softmax_no_max@1", "dequant_layout@1,attn_out", "norm_placement@1"])
def test_3_scores_agree(record_tiny, fault):
    found = compare(record_tiny(n_new=1, change=inject(fault)), record_tiny(n_new=1))
    assert found.scenario.number == 3
    assert "scores agree" in found.scenario.sentence
    assert str(found.first.key) in found.scenario.sentence
    assert answers(found) == {"A": False, "B": False, "C": False}


@pytest.mark.parametrize(
    ("change", "first", "expected", "said"),
    [
        (transpose_q, Key(0, "q"), {"A": False, "B": False, "C": False}, "inherit it from L00 q"),
        (inject("gqa_map"), Key(0, "scores"), {"A": False, "B": True, "C": False}, "Q·K is wrong"),
        (inject("kv_slot"), Key(0, "scores"), {"A": False, "B": True, "C": False}, "Q·K is wrong"),
        (inject("attn_scale"), Key(0, "scores"), {"A": False, "B": False, "C": True}, "the scale is wrong"),
        (inject("causal_mask"), Key(0, "scores"), {"A": False, "B": False, "C": False}, "the mask is wrong"),
    ],
)
def test_4_scores_differ(record_tiny, change, first, expected, said):
    found = compare(record_tiny(n_new=1, change=change), record_tiny(n_new=1))
    assert (found.scenario.number, found.first.key) == (4, first)
    assert answers(found) == expected
    assert said in found.scenario.sentence


def test_a_dropped_bias_is_a_missing_bias(tmp_path):
    model = Model(write_gguf(tmp_path / "biased.gguf", bias=True))
    for name, change in (("healthy", lambda graph: graph), ("faulty", inject("qkv_bias"))):
        record_trace(model, tmp_path / f"{name}.h5", n_new=1, change=change)
    found = compare(Trace(tmp_path / "faulty.h5"), Trace(tmp_path / "healthy.h5"))
    assert found.first.key == Key(0, "q")
    assert answers(found)["A"]
    assert "as by a bias" in found.scenario.hypotheses["A"].figure


@pytest.mark.parametrize(("fault", "wrong"), [("gqa_map", "residual"), ("attn_scale", "factor")])
def test_the_side_that_contradicts_itself_is_told(record_tiny, fault, wrong):
    """Also where it is the reference."""
    faulty, healthy = record_tiny(n_new=1, change=inject(fault)), record_tiny(n_new=1)
    for a, b in ((faulty, healthy), (healthy, faulty)):
        fits = products(compare(a, b).alignment, 0, 0)
        bad, good = fits if a is faulty else fits[::-1]
        assert good.residual < 1e-5
        if wrong == "factor":
            assert bad.factor / good.factor == pytest.approx(4, rel=1e-3)
        else:
            assert bad.residual > 0.1


def test_the_scale_alone_needs_no_q_and_k_to_be_told_if_they_are_known_to_agree(record_tiny):
    selection = Selection(tensors="q_rope,k_rope,scores", tokens="4-")
    found = compare(
        record_tiny(n_new=1, selection=selection, change=inject("attn_scale")),
        record_tiny(n_new=1, selection=selection),
    )
    assert answers(found) == {"A": False, "B": False, "C": True}
    assert "4 times the reference's" in found.scenario.hypotheses["C"].figure


def test_statistics_alone_still_answer_for_magnitudes(record_loud, record_tiny):
    found = compare(record_loud(stats_only=True), record_tiny(n_new=1, stats_only=True))
    assert (found.scenario.number, answers(found)["A"]) == (2, True)
    assert answers(found)["B"] is None


@pytest.mark.parametrize("key", [Key(None, "logits"), Key(0, "resid_out")])
def test_nothing_is_said_where_nothing_relevant_was_recorded(tmp_path, key):
    values = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)
    found = compare(
        write_trace(tmp_path / "a", {key: values}), write_trace(tmp_path / "b", {key: 2 * values})
    )
    assert (found.verdict, found.scenario.number, found.scenario.hypotheses) == ("diverged", None, {})


@pytest.mark.slow
def test_the_seed_story_on_a_real_model(smollm2_model, tmp_path):
    """|Q| of about 60 where the reference has 8: a gain of 1 + w in place of w."""
    for name, change in (
        ("healthy", lambda graph: graph),
        ("faulty", inject("norm_plus_one@0-1,attn_norm")),
    ):
        ids = [504, 1813, 282, 6530, 314]
        record_trace(smollm2_model, tmp_path / f"{name}.h5", ids, n_new=2, change=change)
    found = compare(Trace(tmp_path / "faulty.h5"), Trace(tmp_path / "healthy.h5"))
    assert (found.scenario.number, found.first.key) == (2, Key(0, "attn_norm"))
    row = next(row for row in found.rows() if row.key == Key(0, "q_rope"))
    assert row.mag_b < 15 < 40 < row.mag_a
    assert answers(found) == {"A": True, "B": False, "C": False}
