"""Faults put into transformers from outside: patched functions, modules and weights, none through our ops.

Each is a function of the loaded model that breaks it and gives back how to mend it (patches end with the
run).  What the faulty model does is recorded by the torch engine, whose scores, m and l are computed beside
attention: faults inside the attention function are recorded without them, as a fused kernel would be.  The
files of `patches/` hold them by theme.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from faults.judging import NEW, TILE, TOKENS, Result, judge
from ggufs import write_gguf
from recording import header, record_trace
from tensortrace.tracer.architecture import build_graph
from tensortrace.tracer.engines import torch as engine
from tensortrace.tracer.gguf import Model
from tensortrace.tracer.names import Key
from tensortrace.tracer.record import Request, record
from tensortrace.tracer.selection import Selection
from tensortrace.tracer.trace import Trace

LAYERS = 3
INSIDE = "scores,m,l"  # what the torch engine cannot see of a patched attention function
BF16 = torch.bfloat16
Break = Callable[[Any, ExitStack, list[int]], None]


@dataclass(frozen=True)
class Fault:
    """One way to break a model: the ids that name it, the tensors that the faulty op computes."""

    ids: set[str]
    names: str
    apply: Break
    inside: bool = False


FAULTS: dict[str, Fault] = {}


def fault(ids: str, names: str, inside: bool = False) -> Callable[[Break], Break]:
    def add(function: Break) -> Break:
        FAULTS[function.__name__] = Fault(set(ids.split()), names, function, inside)
        return function

    return add


def named(name: str, function: Break) -> Break:
    function.__name__ = name
    return function


def patched(stack: ExitStack, target: Any, name: str, value: Any) -> None:
    stack.enter_context(patch.object(target, name, value))


def layers(model: Any, where: list[int]) -> list[Any]:
    return [model.model.layers[index] for index in where]


def faults(folder: Path, quick: bool) -> Iterator[Result]:
    """Every fault in all layers and, where it can be, in the middle one alone."""
    for file in sorted((Path(__file__).parent / "patches").glob("*.py")):
        import_module(f"faults.patches.{file.stem}")
    gguf = Model(write_gguf(folder / "foreign.gguf", layers=LAYERS, seed=11))
    ids = np.random.default_rng(2).integers(97, 250, TOKENS).tolist()
    record_trace(gguf, folder / "reference.h5", ids, n_new=NEW, tile=TILE)
    reference = Trace(folder / "reference.h5")
    for name, each in list(FAULTS.items())[:: 4 if quick else 1]:
        for where in (list(range(LAYERS)), [1]):
            path = folder / "foreign.h5"
            path.unlink(missing_ok=True)
            _record(gguf, each, where, ids, path)
            changed = {Key(layer, out) for out in each.names.split() for layer in (*where, None)}
            with Trace(path) as ours:
                place = "all layers" if len(where) > 1 else f"layer {where[0]}"
                yield judge(
                    "foreign: transformers", f"{name}, {place}", each.ids, changed, (ours, reference), gguf
                )


def _record(gguf: Model, each: Fault, where: list[int], ids: list[int], path: Path) -> None:
    made = engine.Engine(build_graph(gguf), gguf)
    hidden = INSIDE.split(",") if each.inside else []
    names = {key.name for key in made.available()} - set(hidden)
    request = Request(ids, n_new=NEW, selection=Selection(tensors=",".join(sorted(names))))
    with ExitStack() as stack, torch.no_grad():
        each.apply(made._model, stack, where)
        record(made, request, path, header(gguf, **made.settings))
