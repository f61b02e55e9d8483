"""Finding the architecture file of a model: `arch/<general.architecture>.py`."""

from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pkgutil import iter_modules
from typing import Any

from .errors import ModelError
from .graph import Graph, Op, Weights


def supported() -> list[str]:
    """The architectures that can be run and replayed."""
    return sorted(
        entry.name.replace("_", "-") for entry in iter_modules(import_module(".arch", __package__).__path__)
    )


def build_graph(model: Weights, **attention: Any) -> Graph:
    """The graph of `model`; `attention` parameters (softmax, tile) are set on every attention op."""
    module = f".arch.{model.arch.replace('-', '_')}"
    if (
        model.arch.startswith("_")
        or not model.arch.replace("-", "_").isidentifier()
        or not find_spec(module, __package__)
    ):
        raise ModelError(
            f"architecture {model.arch!r} is not supported: {', '.join(supported())} are "
            "(traces of any model can still be compared)"
        )
    graph = Graph(model)
    import_module(module, __package__).build(graph)
    _check_window(graph)
    return graph.replace(lambda op: _with(op, attention)) if attention else graph


def _check_window(graph: Graph) -> None:
    """ModelError for a window that the architecture file knows nothing of."""
    width = graph.model.hparam("attention.sliding_window", 0)
    if width and not any("window" in op.params for op in graph.ops):
        arch = graph.model.arch
        raise ModelError(f"{arch}.attention.sliding_window is {width}, but {arch} has no windows known here")


def _with(op: Op, attention: dict[str, Any]) -> Op:
    return replace(op, params={**op.params, **attention}) if op.kind == "attention" else op
