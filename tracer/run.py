"""Interpret a graph with arrays: one forward pass a step, every tensor handed out as it is computed."""

from collections.abc import Callable, Collection
from typing import Any, Protocol

import numpy as np

from ..kernels import linear
from ..kernels.dequantize import Blocks
from .format import Step
from .graph import POSITIONS, TOKENS, Graph, Op
from .names import Key

Sink = Callable[[Key, np.ndarray], None]


class WeightSource(Protocol):
    def weight(self, name: str, dtype: Any = ...) -> np.ndarray: ...
    def tensor_type(self, name: str) -> str: ...
    def blocks(self, name: str) -> Blocks: ...


class Runner:
    """Runs a graph on the CPU kernels in `dtype` (float32 or float64), keeping the KV cache.

    `wanted` are the tensors that the sink is called with; optional outputs of an op (scores, m, l, …) that
    nobody wants are not computed.
    """

    def __init__(
        self,
        graph: Graph,
        weights: WeightSource,
        *,
        dtype: np.dtype | type = np.float32,
        wanted: Collection[Key] = (),
        max_tokens: int,
    ):
        self.weights, self.dtype = weights, np.dtype(dtype)
        self._max_tokens = max_tokens
        self._cache: dict[Key, np.ndarray] = {}
        last_use = {key: index for index, op in enumerate(graph.ops) for key in op.inputs}
        self._calls = [
            _Call(
                op,
                frozenset(wanted),
                tuple(key for key in op.inputs if last_use[key] == index),
                self._stored(op),
            )
            for index, op in enumerate(graph.ops)
        ]

    def step(self, step: Step, ids: np.ndarray, sink: Sink) -> np.ndarray:
        """Feed the step's `ids` [token]; returns the output of the last op (logits [token, vocab])."""
        live: dict[Key, np.ndarray] = {TOKENS: ids, POSITIONS: np.arange(step.start, step.kv_len)}
        for call in self._calls:
            result = self._compute(call, live, step)
            made = result if isinstance(result, dict) else {"out": result}
            for name, key in call.wanted:
                if name in made:  # what a fault has put in its place may not give every optional output
                    sink(key, made[name])
            live[call.op.out] = out = made["out"]
            for key in call.last_uses:
                live.pop(key, None)
        return out

    def _compute(self, call: "_Call", live: dict[Key, np.ndarray], step: Step) -> Any:
        inputs = [live[key] for key in call.op.inputs]
        for index in call.history:
            inputs[index] = self._remember(call.op.inputs[index], inputs[index], step)
        return call.compute(*inputs, *self._operands(call, step), **call.params)

    def _operands(self, call: "_Call", step: Step) -> list[Any]:
        """The op's weights: one token's product takes its matrix as it is stored, where it can."""
        if call.stored is None or step.n_tokens > 1:
            return [self.weights.weight(name, self.dtype) for name in call.op.weights]
        return [call.stored, *(self.weights.weight(name, self.dtype) for name in call.op.weights[1:])]

    def _stored(self, op: Op) -> Blocks | None:
        """The matrix of a product that reads it as it is stored."""
        if op.kind != "linear" or op.wraps or self.dtype != np.float32:
            return None
        name = op.weights[0]
        return self.weights.blocks(name) if linear.reads_blocks(self.weights.tensor_type(name)) else None

    def _remember(self, key: Key, array: np.ndarray, step: Step) -> np.ndarray:
        """Append the step's rows to the cache of `key` and return all rows so far."""
        if key not in self._cache:
            self._cache[key] = np.empty((self._max_tokens, *array.shape[1:]), array.dtype)
        self._cache[key][step.start : step.kv_len] = array
        return self._cache[key][: step.kv_len]


class _Call:
    """What is the same in every step of one op, looked up once."""

    def __init__(self, op: Op, wanted: frozenset[Key], last_uses: tuple[Key, ...], stored: Blocks | None):
        self.op, self.last_uses, self.stored = op, last_uses, stored
        self.compute, self.history = op.compute(), op.history
        self.params: dict[str, Any] = dict(op.params)
        if len(op.outputs) > 1:
            self.params["want"] = {key.name for key in op.outputs if key in wanted and key != op.out}
        self.wanted = [("out" if key == op.out else key.name, key) for key in op.outputs if key in wanted]
