"""Architectures as data: ops, their names and weights, and graphs that differ by one op."""

from pathlib import Path

import numpy as np
import pytest
from ggufs import write_gguf
from recording import record_trace
from tensortrace.tracer.architecture import build_graph, supported
from tensortrace.tracer.errors import ModelError
from tensortrace.tracer.gguf import Model
from tensortrace.tracer.graph import POSITIONS, TOKENS, Graph, Op
from tensortrace.tracer.names import NAMES, Key, execution_order
from tensortrace.tracer.trace import Trace


def test_llama_in_execution_order(tiny_model: Model) -> None:
    graph = build_graph(tiny_model)
    assert graph.outputs == sorted(graph.outputs, key=execution_order)
    assert len(set(graph.outputs)) == len(graph.outputs)
    assert {key.name for key in graph.outputs} <= set(NAMES)
    known = {TOKENS, POSITIONS}
    for op in graph.ops:
        assert set(op.inputs) <= known, f"{op.out} reads what nothing has computed yet"
        known |= set(op.outputs)
        assert all(weight in tiny_model for weight in op.weights)


def test_producers(tiny_model: Model) -> None:
    graph = build_graph(tiny_model)
    scores = graph.producer(Key(1, "scores"))
    assert scores is not None
    assert scores.out == Key(1, "attn")
    assert graph.producer(TOKENS) is None
    assert graph.producer(Key(9, "q")) is None


def test_weights_that_a_model_has_not_are_left_out(tmp_path: Path) -> None:
    plain = build_graph(Model(write_gguf(tmp_path / "plain.gguf")))
    biased = build_graph(Model(write_gguf(tmp_path / "biased.gguf", bias=True, tied=True)))
    q = Key(1, "q")
    assert plain.producer(q).weights == ("blk.1.attn_q.weight",)
    assert biased.producer(q).weights == ("blk.1.attn_q.weight", "blk.1.attn_q.bias")
    assert plain.ops[-1].weights == ("output.weight",)
    assert biased.ops[-1].weights == ("token_embd.weight",)


def test_a_changed_op_leaves_the_graph_alone(tiny_model: Model) -> None:
    graph = build_graph(tiny_model)

    def change(op: Op) -> Op:
        return op.with_params(scale=1.0) if op.out == Key(1, "attn") else op

    faulty = graph.replace(change)
    different = [a.out for a, b in zip(graph.ops, faulty.ops, strict=True) if a != b]
    assert different == [Key(1, "attn")]
    assert graph.producer(Key(1, "attn")).params["scale"] == 0.25


def test_a_wrap_sees_the_operands(tiny_model: Model, tmp_path: Path) -> None:
    """A fault put around one op changes that op's output and nothing before it."""

    def doubled(op: Op) -> Op:
        wrap = lambda compute: lambda *operands, **params: 2 * compute(*operands, **params)  # noqa: E731
        return op.wrapped(wrap) if op.out == Key(1, "q") else op

    for name, change in (("right", lambda graph: graph), ("wrong", lambda graph: graph.replace(doubled))):
        record_trace(tiny_model, tmp_path / f"{name}.h5", change=change)
    right, wrong = Trace(tmp_path / "right.h5"), Trace(tmp_path / "wrong.h5")
    keys = list(right.tensors)
    for key in keys[: keys.index(Key(1, "q"))]:
        assert np.array_equal(right.read(key, 0), wrong.read(key, 0))
    assert np.array_equal(2 * right.read(Key(1, "q"), 0), wrong.read(Key(1, "q"), 0))


def test_attention_parameters_are_set_everywhere(tiny_model: Model) -> None:
    graph = build_graph(tiny_model, softmax="two-pass", tile=7)
    found = [(op.params["softmax"], op.params["tile"]) for op in graph.ops if op.kind == "attention"]
    assert found == [("two-pass", 7)] * 2


def test_layers_end(tiny_model: Model) -> None:
    graph = Graph(tiny_model)
    for _ in graph.layers(2):
        graph.op("q", "linear", TOKENS, w=("attn_q.weight",))
    assert graph.op("logits", "linear", TOKENS, w=("output.weight",)) == Key(None, "logits")
    assert [op.out for op in graph.ops] == [Key(0, "q"), Key(1, "q"), Key(None, "logits")]


@pytest.mark.parametrize("arch", ["gpt9", "__init__", "_private", "../llama", "llama.x", "os", ""])
def test_unsupported_architectures(arch: str, tiny_model: Model) -> None:
    class Odd:
        def __contains__(self, name: str) -> bool:
            return False

    odd = Odd()
    odd.arch = arch
    with pytest.raises(ModelError, match="not supported") as caught:
        build_graph(odd)
    assert "\n" not in str(caught.value)
    assert all(name in str(caught.value) for name in supported())
