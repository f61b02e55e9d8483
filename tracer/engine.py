"""Choosing an engine by name: `engines/<name>.py`."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType
from typing import Any

import numpy as np

from .architecture import build_graph
from .device import usable
from .errors import ModelError, UserError
from .format import ROW_AXES, TensorSpec
from .gguf import Model
from .graph import POSITIONS, TOKENS, Graph, Weights
from .names import NAMES, Key
from .record import Engine


def names() -> list[str]:
    """The engines that this version has, as they are named on the command line."""
    return [
        entry.name.replace("_", ".")
        for entry in iter_modules(import_module(".engines", __package__).__path__)
    ]


def load(name: str, graph: Graph | None, model: Model | Path, *, dtype: str, **options: Any) -> Engine:
    """The engine `name` ready to run `model` (torch: also a folder) in `dtype`; `options` are its own.

    `graph` is what `graph_of` gives, or that with a fault put in.
    """
    if name == "auto":  # float64 is the CPU's alone
        name = "cuda" if dtype != "float64" and usable() else "cpu"
    engine: Engine = _module(name).Engine(graph, model, dtype=dtype, **options)
    return engine


def runs_graph(name: str) -> bool:
    """Whether the engine computes what our graph says; the others bring their own code of the model."""
    return name == "auto" or getattr(_module(name), "RUNS_GRAPH", True)


def graph_of(name: str, model: Weights, **attention: Any) -> Graph | None:
    """Our graph of `model`; None where we have none and the engine `name` does without."""
    try:
        return build_graph(model, **attention)
    except ModelError:
        if runs_graph(name):
            raise
        return None


def _module(name: str) -> ModuleType:
    if name not in names():
        raise UserError(f"--engine {name}: one of auto, {', '.join(names())}")
    return import_module(f".engines.{name.replace('.', '_')}", __package__)


def declare(
    graph: Graph | None,
    key: Key,
    sizes: Sequence[int],
    dtype: str,
    source: str,
    conventions: Mapping[str, Any],
) -> TensorSpec:
    """How an engine that does not run our graph declares the tensor that it calls `source`.

    `sizes` are those of the axes that stay the same from step to step.  The op and what it reads are told by
    our graph of the model, where there is one.
    """
    axes = NAMES[key.name].axes
    fixed = [axis for axis in axes if axis not in (*ROW_AXES, "key")]
    op = graph.producer(key) if graph else None
    inputs = () if op is None else tuple(name for name in op.inputs if name not in (TOKENS, POSITIONS))
    return TensorSpec(
        key,
        axes,
        dict(zip(fixed, sizes, strict=True)),
        NAMES[key.name].dtype or dtype,
        "" if op is None else op.kind,
        inputs,
        source,
        dict(conventions),
    )


def softmax_state(scores: np.ndarray, sinks: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """m and l [head, query] of scores [head, query, key], for an engine that does not show its own.

    `sinks` [head] are the scores of one more key in each row, without a value.
    Added up in float64 and rounded to the dtype of the scores, in which exp is computed, too: l is off by
    one unit in its last place at the most.
    """
    m = scores.max(-1) if sinks is None else np.maximum(scores.max(-1), sinks[:, None]).astype(scores.dtype)
    sums = np.empty_like(m)
    for head, rows in enumerate(scores):  # one at a time: that stays in a core's cache
        sums[head] = np.exp(rows - m[head, :, None]).sum(-1, dtype=np.float64)
    if sinks is not None:
        sums += np.exp(sinks[:, None] - m)
    return m, sums
