"""Faults put into llama.cpp from outside: it runs a GGUF that was altered, or is told to run it another way.

What it records is compared with our run of the right file, which is also the model that `trace` is given.  So
the engine is at fault as one is that misreads the file: a metadata key, the layout of a weight, which weight
is which.  The files of `altered/` hold the faults by theme; a fault names the architectures it is put into.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from faults import models
from faults.judging import NEW, TILE, TOKENS, Result, judge
from ggufs import Weights
from recording import header, record_trace
from tensortrace.tracer.architecture import build_graph
from tensortrace.tracer.engines import llama_cpp as engine
from tensortrace.tracer.gguf import Model
from tensortrace.tracer.names import Key
from tensortrace.tracer.record import Request, record
from tensortrace.tracer.trace import Trace

Change = Callable[[Weights, list[int]], Mapping[str, np.ndarray]]
api = import_module("llama_cpp.llama_cpp")


@dataclass(frozen=True)
class Fault:
    """One way to go wrong: ids that name it, tensors that the faulty ops compute, and what is altered.

    `on` lists architectures, or one of their shapes as in llama/yarn.  `change` gives the weights that are
    other in some layers; `without` are weights that are left out; `options` are of llama_context_params;
    `flash` uses flash attention, which shows nothing of its inside.
    """

    ids: set[str]
    names: str
    on: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    change: Change | None = None
    without: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    flash: bool = False
    local: bool = False  # whether one layer alone can have it


FAULTS: dict[str, Fault] = {}


def add(name: str, ids: str, names: str, on: str, **altered: Any) -> None:
    assert name not in FAULTS, name
    FAULTS[name] = Fault(set(ids.split()), names, on, **altered)


def faults(folder: Path, quick: bool) -> Iterator[Result]:
    """Every fault in all layers of its architectures and, where it can be, in the middle one alone."""
    for file in sorted((Path(__file__).parent / "altered").glob("*.py")):
        import_module(f"faults.altered.{file.stem}")
    bench = _Bench(folder)
    for name, each in list(FAULTS.items())[:: 4 if quick else 1]:
        for place in each.on.split():
            for middle in (False, True) if each.local else (False,):
                yield bench.tried(name, each, place, middle)


class _Bench:
    """The right models, our traces of them, and what llama.cpp makes of altered ones."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._right = cache(self._write)
        self._reference = cache(self._record)

    def tried(self, name: str, fault: Fault, place: str, middle: bool) -> Result:
        right = self._right(place)
        layers = right.hparam("block_count")
        where = [layers // 2] if middle else list(range(layers))
        altered = Model(models.write(self._folder, place, partial(_altered, fault, where), "altered"))
        ours = self._folder / "ours.h5"
        ours.unlink(missing_ok=True)
        with ExitStack() as stack:
            misled(stack, fault)
            made = engine.Engine(build_graph(right), altered, flash=fault.flash)
            record(made, Request(IDS, n_new=NEW), ours, header(right, **made.settings))
        changed = {Key(layer, out) for out in fault.names.split() for layer in (*where, None)}
        told = f"{name} of {place}, {f'layer {where[0]}' if middle else 'all layers'}"
        with Trace(ours) as trace:
            return judge(
                "foreign: llama.cpp", told, fault.ids, changed, (trace, self._reference(place)), right
            )

    def _write(self, place: str) -> Model:
        return Model(models.write(self._folder, place))

    def _record(self, place: str) -> Trace:
        path = self._folder / f"{place.replace('/', '-')}.h5"
        record_trace(self._right(place), path, IDS, n_new=NEW, tile=TILE)
        return Trace(path)


IDS = np.random.default_rng(2).integers(97, 250, TOKENS).tolist()


def _altered(fault: Fault, where: list[int], shape: dict[str, Any]) -> dict[str, Any]:
    """Arguments of write_gguf for a file with the fault in it."""
    before = shape.get("change", lambda weights: weights)

    def change(weights: Weights) -> Weights:
        right = before(weights)
        made = {**right, **(fault.change(right, where) if fault.change else {})}
        return {name: array for name, array in made.items() if name not in fault.without}

    return shape | {"change": change, "metadata": {**shape.get("metadata", {}), **fault.metadata}}


def misled(stack: ExitStack, fault: Fault) -> None:
    """While the stack is open, llama.cpp has other defaults than our engine takes for granted."""
    default = api.llama_context_default_params

    def options() -> Any:
        params = default()
        for name, value in fault.options.items():
            setattr(params, name, value)
        return params

    stack.enter_context(patch.object(api, "llama_context_default_params", options))
