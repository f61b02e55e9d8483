"""Faulty and healthy runs of one small model on our CPU engine, recorded in several ways."""

import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from faults.judging import NEW, TILE, TOKENS, Result, judge
from recording import record_trace
from tensortrace.analyze.cause import Injection
from tensortrace.tracer.architecture import build_graph
from tensortrace.tracer.errors import UserError
from tensortrace.tracer.gguf import Model
from tensortrace.tracer.graph import Graph, Op
from tensortrace.tracer.names import Key
from tensortrace.tracer.selection import Selection
from tensortrace.tracer.trace import Trace

FEW = "q_rope,k_rope,scores,resid_out,logits"
SEEDS = 7  # of what is dropped at random


class Half(Selection):
    """Half of the tensors at random, always the same for a seed; the logits stay."""

    def __init__(self, seed: int):
        object.__setattr__(self, "seed", seed)
        super().__init__()

    def keys(self, available: Iterable[Key]) -> list[Key]:
        def kept(key: Key) -> bool:
            return key.name == "logits" or zlib.crc32(f"{self.seed}{key}".encode()) % 2 == 0

        return [key for key in available if kept(key)]


@dataclass(frozen=True)
class Mode:
    """How the two traces are recorded."""

    name: str
    selection: Callable[[int], Selection] = lambda seed: Selection()
    storage: str = "float32"
    dtype: str = "float32"
    reference: Callable[[int], Selection] | None = None  # where it is recorded otherwise


MODES = (
    Mode("everything recorded, f32"),
    Mode("everything recorded, f64", dtype="float64", storage="float64"),
    Mode("stored as f16", storage="float16"),
    Mode("half of the tensors dropped", Half),
    Mode("half dropped on our side alone", Half, reference=lambda seed: Selection()),
    Mode("half dropped on the reference's side alone", reference=Half),
    Mode("another half dropped on either side", Half, reference=lambda seed: Half(seed + SEEDS)),
    Mode("only q_rope, k_rope, scores, resid_out", lambda seed: Selection(tensors=FEW)),
)
PHASES = ("prefill", "decode")


class Elsewhere(Exception):
    """A fault that a model has no place for."""


def _apply(injection: Injection, graph: Graph) -> Graph:
    try:
        return injection.apply(graph)
    except (UserError, ValueError, IndexError, KeyError) as error:
        raise Elsewhere(injection.cause.id) from error


def turn(text: str, count: int) -> int:
    """A number below `count` that is always the same for a text: how the zoo is sampled."""
    return zlib.crc32(text.encode()) % count


class Runs:
    """Runs of one model; healthy ones are kept."""

    def __init__(self, model: Model, folder: Path):
        self.model, self._folder = model, folder
        self.graph = build_graph(model)
        self._healthy: dict[tuple[str, int], Trace] = {}

    def tried(self, group: str, text: str, mode: Mode = MODES[0], phase: str = "") -> Result:
        """What is made of an injection, in one phase only where one is given; Elsewhere where it fits not."""
        injection = Injection.parse(text)
        faulty = _apply(injection, self.graph)
        changed = {a.out for a, b in zip(self.graph.ops, faulty.ops) if a is not b}
        seed = turn(text, SEEDS)
        healthy = self._of(mode, seed)

        def change(graph: Graph) -> Graph:
            return in_phase(injection.apply(graph), graph, phase)

        path = self._folder / "ours.h5"
        path.unlink(missing_ok=True)
        ids = healthy.tokens.tolist()[:TOKENS]
        try:
            ours = self._record(path, mode, seed, ids, change)
        except (UserError, ValueError, IndexError, KeyError) as error:  # of other shapes than it is for
            raise Elsewhere(text) from error
        with ours:
            fault = f"{text}, {phase} only" if phase else text
            return judge(group, fault, self._names(injection, phase), changed, (ours, healthy), self.model)

    def _names(self, injection: Injection, phase: str) -> set[str]:
        """The ids of a fault: that of its cause, and of those that are the same thing here."""
        name, names = injection.cause.id, {injection.cause.id}
        if phase == "decode" and name in ("nope_layers", "rope_twice"):
            names.add("rope_position")  # a step of one token is rotated by position 0, or 2p
        bases = {op.params["base"] for op in self.graph.ops if op.kind == "rope"}
        if name == "rope_per_layer" and injection.value not in bases:
            names.add("rope_theta")  # a base that no layer has
        return names

    def _of(self, mode: Mode, seed: int) -> Trace:
        key = (mode.name, seed if Half in (mode.selection, mode.reference) else 0)
        if key not in self._healthy:
            path = self._folder / f"{self.model.path.stem}-healthy{len(self._healthy)}.h5"
            ids = np.random.default_rng(1).integers(97, 250, TOKENS).tolist()
            recorded = replace(mode, selection=mode.reference or mode.selection)
            self._healthy[key] = self._record(path, recorded, seed, ids)
        return self._healthy[key]

    def _record(
        self,
        path: Path,
        mode: Mode,
        seed: int,
        ids: list[int],
        change: Callable[[Graph], Graph] = lambda graph: graph,
    ) -> Trace:
        record_trace(
            self.model,
            path,
            ids,
            dtype=mode.dtype,
            storage=mode.storage,
            selection=mode.selection(seed),
            n_new=NEW,
            tile=TILE,
            change=change,
        )
        return Trace(path)


def in_phase(faulty: Graph, right: Graph, phase: str) -> Graph:
    """The faulty graph, right but in steps of one phase: decode steps have one row."""
    if not phase:
        return faulty
    rights = {op.out: op for op in right.ops}

    def change(op: Op) -> Op:
        other = rights[op.out]
        return op if op is other else _either(op, other, phase == "decode")

    return faulty.replace(change)


def _either(faulty: Op, right: Op, in_decode: bool) -> Op:
    """Faulty in steps of one token, or in those of more; UserError where the two read other tensors."""
    if (faulty.inputs, faulty.weights) != (right.inputs, right.weights):
        raise UserError(f"{right.out} reads other tensors: it cannot be told apart by phase")
    wrong, correct = faulty.compute(), right.compute()

    def wrap(_: Any) -> Any:
        def compute(first: Any, *operands: Any, want: Any = None, **params: Any) -> Any:
            wants = {} if want is None else {"want": want}
            if (len(first) == 1) is in_decode:
                return wrong(first, *operands, **{**faulty.params, **wants})
            return correct(first, *operands, **{**right.params, **wants})

        return compute

    return right.wrapped(wrap)
