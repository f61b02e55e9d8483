"""Choosing an engine, and what engines without our graph share."""

import numpy as np
import pytest
from tensortrace.tracer import engine
from tensortrace.tracer.errors import ModelError, UserError
from tensortrace.tracer.gguf import Model
from tensortrace.tracer.names import Key


class Unsupported:
    """As much of a model as tells its architecture."""

    arch = "unheard-of"


def test_names() -> None:
    assert {"cpu", "cuda", "llama.cpp", "torch"} <= set(engine.names())
    with pytest.raises(UserError, match=r"one of auto, .*llama\.cpp"):
        engine.runs_graph("gpu")


def test_a_graph_is_needed_by_those_that_run_it(tiny_model: Model) -> None:
    assert engine.graph_of("cpu", tiny_model, tile=4) is not None
    assert engine.graph_of("llama.cpp", tiny_model) is not None
    for name in ("llama.cpp", "torch"):
        assert not engine.runs_graph(name)
        assert engine.graph_of(name, Unsupported()) is None
    for name in ("auto", "cpu", "cuda"):
        assert engine.runs_graph(name)
        with pytest.raises(ModelError, match="unheard-of"):
            engine.graph_of(name, Unsupported())


def test_declared_tensors(tiny_model: Model) -> None:
    graph = engine.graph_of("cpu", tiny_model)
    probs = engine.declare(graph, Key(1, "probs"), (4,), "float16", "kq_soft_max-1", {"scale": 0.5})
    assert (probs.axes, probs.sizes, probs.op) == (("head", "query", "key"), {"head": 4}, "attention")
    assert probs.inputs == (Key(1, "q_rope"), Key(1, "k_rope"), Key(1, "v"))
    assert probs.shape(3, 8) == (4, 3, 8)
    chosen = engine.declare(None, Key(0, "expert_ids"), (2,), "float16", "ffn_moe_topk-0", {})
    assert (chosen.dtype, chosen.op, chosen.inputs) == ("int32", "", ())


def test_softmax_state() -> None:
    scores = np.array([[[0, np.log(2), -np.inf], [3, 3, 3]]], np.float32)
    m, l = engine.softmax_state(scores)  # noqa: E741
    assert m.dtype == l.dtype == np.float32
    assert np.allclose(m, [[np.log(2), 3]])
    assert np.allclose(l, [[1.5, 3]])


def test_softmax_state_is_exact_to_the_last_place() -> None:
    scores = np.random.default_rng(0).normal(0, 4, (3, 50, 300)).astype(np.float32)
    m, l = engine.softmax_state(scores)  # noqa: E741
    exact = np.exp(scores.astype(np.float64) - m[..., None]).sum(-1)
    assert np.abs(l / exact - 1).max() < 1.2e-7
