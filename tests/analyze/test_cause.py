"""Parsing `--inject`, and what each cause does to a graph."""

from pathlib import Path

import numpy as np
import pytest
from tensortrace.analyze.cause import Injection, causes, reference
from tensortrace.tracer.architecture import build_graph
from tensortrace.tracer.errors import UserError
from tensortrace.tracer.gguf import Model
from tensortrace.tracer.graph import Graph


def changed(graph: Graph, faulty: Graph) -> list[str]:
    """The ops that differ, by output."""
    return [str(a.out) for a, b in zip(graph.ops, faulty.ops, strict=True) if a != b]


def test_every_cause_says_what_it_is_and_how_to_mend_it() -> None:
    for name, cause in causes().items():
        assert cause.id == name
        assert cause.__doc__
        assert cause.fix


def test_the_page_of_causes_is_up_to_date() -> None:
    page = Path(__file__).parents[2] / "docs" / "causes.md"
    made = reference()
    assert page.read_text(encoding="utf-8") == made, "write analyze.cause.reference() to docs/causes.md"


@pytest.mark.parametrize(
    ("text", "ops"),
    [
        ("attn_scale@1=0.5", ["L01 attn"]),
        ("rope_pairing", ["L00 q_rope", "L00 k_rope", "L01 q_rope", "L01 k_rope"]),
        ("rope_pairing@k_rope", ["L00 k_rope", "L01 k_rope"]),
        ("norm_plus_one@0,attn_norm", ["L00 attn_norm"]),
        ("norm_plus_one@final_norm", ["final_norm"]),
        ("dequant_layout@1,q,up", ["L01 q", "L01 up"]),
        ("tokens_bos", []),
    ],
)
def test_injection_goes_where_it_is_told(tiny_model: Model, text: str, ops: list[str]) -> None:
    graph = build_graph(tiny_model)
    assert changed(graph, Injection.parse(text).apply(graph)) == ops


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("no_such_thing", "no such cause; there are"),
        ("attn_scale=fast", "not a number"),
        ("rope_twice=1", "takes no value"),
        ("activation=tan", "give one of gelu_erf, gelu_tanh"),
        ("kv_slot=far", "give a value like 1"),
        ("causal_mask@7", "fits no operation of this model at 7"),
        ("causal_mask@q", "fits no operation of this model at q"),
        ("causal_mask@3-1", "runs backwards"),
    ],
)
def test_a_wrong_injection_is_one_clear_line(tiny_model: Model, text: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as raised:
        Injection.parse(text).apply(build_graph(tiny_model))
    assert "\n" not in str(raised.value)


def test_bos_is_put_in_front() -> None:
    assert causes()["tokens_bos"].change_ids([5, 6], {"tokenizer.ggml.bos_token_id": 3}) == [3, 5, 6]


def test_values_that_would_change_nothing_are_moved(tiny_model: Model) -> None:
    graph = build_graph(tiny_model)  # its rotary base is 10000, the cause's default
    rope = next(op for op in graph.ops if op.kind == "rope")
    assert causes()["rope_theta"].change(rope, 10000.0, tiny_model).params["base"] == 100000.0
    norm = next(op for op in graph.ops if op.kind == "rms_norm")
    eps = norm.params["eps"]
    assert causes()["norm_eps"].change(norm, eps, tiny_model).params["eps"] == pytest.approx(10 * eps)


def test_softmax_without_max_is_softmax_while_nothing_overflows(tiny_model: Model) -> None:
    attend = next(op for op in build_graph(tiny_model).ops if op.kind == "attention")
    random = np.random.default_rng(0)
    q, k, v = (random.normal(size=(5, heads, 16)) for heads in (4, 2, 2))
    want = {"probs", "l", "m", "scores"}
    right = attend.compute()(q, k, v, scale=0.25, want=want)
    faulty = causes()["softmax_no_max"].change(attend, None, tiny_model).compute()
    wrong = faulty(q, k, v, scale=0.25, want=want)
    np.testing.assert_allclose(wrong["probs"], right["probs"], rtol=1e-12)
    np.testing.assert_allclose(wrong["out"], right["out"], rtol=1e-12)
    np.testing.assert_allclose(wrong["l"], right["l"] * np.exp(right["m"]), rtol=1e-12)
    assert not wrong["m"].any()
    assert np.isnan(faulty(1e3 * q, k, v, scale=1.0, want=want)["probs"]).any()
