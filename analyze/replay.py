"""Interpret a graph on a trace: each op recomputed in float64 from the inputs that the trace recorded.

An op is judged by the error that it adds: what it inherited is in its recorded inputs already.  Where an
input was not recorded, its producer is replayed too, back to the nearest recorded tensors.
"""

from typing import Any

import numpy as np

from ..tracer.architecture import build_graph
from ..tracer.errors import TraceError
from ..tracer.gguf import Model
from ..tracer.graph import POSITIONS, TOKENS, Graph, Op
from ..tracer.names import Key
from ..tracer.trace import Trace
from .fitted import Fitted


class NotRecorded(TraceError):
    """The trace lacks what a replay needs, and nothing recorded leads to it."""


def graph_of(trace: Trace, model: Model) -> Graph:
    """The model's graph, with softmax computed in the form and the tiles that the trace states."""
    settings = {k: v for k, v in trace.header.settings.items() if k in ("softmax", "tile") and v}
    return build_graph(model, **settings)


class Replay:
    """Replays ops of `trace` with the weights of `model`; results are float64, shaped as recorded.

    The graph is the model's own architecture, right by definition; pass a changed op to `compute` to ask
    what a fault would have given.
    """

    def __init__(self, trace: Trace, model: Model):
        self.model, self.graph = model, graph_of(trace, model)
        self.trace = Fitted(trace, self.graph)
        self._weights: dict[str, np.ndarray] = {}

    def compute(self, op: Op, step: int) -> dict[Key, np.ndarray]:
        """Every output of `op` that the trace has, or just op.out, from the recorded inputs of `step`."""
        inputs = [
            self.history(key, step) if index in op.history else self.value(key, step)
            for index, key in enumerate(op.inputs)
        ]
        params: dict[str, Any] = dict(op.params)
        if len(op.outputs) > 1:
            params["want"] = {key.name for key in op.outputs if self.trace.has(key, step)}
        with np.errstate(over="ignore", invalid="ignore"):  # a faulty variant may overflow: that is a result
            result = op.compute()(*inputs, *map(self._weight, op.weights), **params)
        if not isinstance(result, dict):
            return {op.out: result}
        named = {Key(op.out.layer, name): array for name, array in result.items() if name != "out"}
        return {**named, op.out: result["out"]}

    def value(self, key: Key, step: int) -> np.ndarray:
        """A tensor of one step: as recorded, or replayed from what was."""
        rows = self.trace.rows(step)
        if key == TOKENS:
            return self.trace.tokens[rows]
        if key == POSITIONS:
            return rows
        producer = self.graph.producer(key)
        if self.trace.has(key, step):
            recorded = self.trace.read(key, step).astype(np.float64)
            if key not in self.trace.clipped or producer is None:
                return recorded
            return self.trace.unclipped(key, recorded, self.compute(producer, step)[key])
        if producer is None:
            raise NotRecorded(
                f"{self.trace.path}: {key} is neither recorded nor computed by this architecture"
            )
        return self.compute(producer, step)[key]

    def reads(self, key: Key, step: int) -> bool:
        """Whether an op can read a tensor as it was recorded."""
        return self.trace.has(key, step) and key not in self.trace.clipped

    def history(self, key: Key, step: int) -> np.ndarray:
        """The rows of all tokens up to a step (what a KV cache holds)."""
        if len(self.trace.recorded) and not np.array_equal(
            self.trace.recorded[: self.trace.steps[step].kv_len], np.arange(self.trace.steps[step].kv_len)
        ):
            raise NotRecorded(f"{self.trace.path}: {key} is recorded for some tokens only")
        return np.concatenate([self.value(key, earlier) for earlier in range(step + 1)])

    def _weight(self, name: str) -> np.ndarray:
        return self.model.weight(name, np.float64)


def residual(recorded: np.ndarray, computed: np.ndarray) -> float:
    """||recorded - computed|| over the entries finite in both; infinite where their masks differ."""
    recorded = recorded.astype(np.float64)
    finite = np.isfinite(recorded) & np.isfinite(computed)
    if np.any((recorded != computed) & ~finite & ~(np.isnan(recorded) & np.isnan(computed))):
        return float("inf")
    difference = recorded[finite] - computed[finite]
    return float(np.sqrt(np.dot(difference, difference)))
