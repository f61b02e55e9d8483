"""Own faults: every case of every cause put into our CPU engine by --inject."""

import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zoo
from faults.judging import NEW, TILE, TOKENS, Result, judge
from recording import record_trace
from tensortrace.analyze.cause import Cause, Injection, causes
from tensortrace.tracer.architecture import build_graph
from tensortrace.tracer.errors import UserError
from tensortrace.tracer.gguf import Model
from tensortrace.tracer.graph import Graph
from tensortrace.tracer.hub import resolve
from tensortrace.tracer.names import Key
from tensortrace.tracer.selection import Selection
from tensortrace.tracer.trace import Trace

FEW = "q_rope,k_rope,scores,resid_out,logits"


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


MODES = (
    Mode("everything recorded, f32"),
    Mode("everything recorded, f64", dtype="float64", storage="float64"),
    Mode("stored as f16", storage="float16"),
    Mode("half of the tensors dropped", Half),
    Mode("only q_rope, k_rope, scores, resid_out", lambda seed: Selection(tensors=FEW)),
)


def own(folder: Path, quick: bool) -> Iterator[Result]:
    """Every case of every cause on small models; in full runs also once each on SmolLM2."""
    models = _Models(folder)
    for cause in causes().values():
        if type(cause).change is Cause.change:
            continue
        for text in _faults(cause, quick):
            for mode in _modes(text, quick):
                yield models.tried(cause, text, mode)
    smollm2 = Model(resolve("smollm2-135m"))
    for cause in causes().values():
        if not cause.needs and type(cause).change is not Cause.change and not quick:
            yield from _on_smollm2(smollm2, cause, next(_with_layers(cause.fires[0], ["14"])), folder)


def _modes(text: str, quick: bool) -> list[Mode]:
    """Everything recorded, and one other mode in turn, by the fault."""
    rest = MODES[4:] if quick else MODES[1:]
    return [MODES[0], rest[zlib.crc32(text.encode()) % len(rest)]]


def _faults(cause: Cause, quick: bool) -> list[str]:
    """The cases of a cause: the first in the first, the middle, the last and all layers, others in two."""
    first, *others = cause.fires
    found = [*_with_layers(first, ["0", ""] if quick else ["0", "1", "2", ""])]
    for text in [] if quick else others:
        found += _with_layers(text, ["1", ""])
    return list(dict.fromkeys(found))


def _with_layers(text: str, layers: Sequence[str]) -> Iterator[str]:
    head, equals, value = text.partition("=")
    name, _, where = head.partition("@")
    tensors = [part for part in where.split(",") if part and not part[0].isdigit()]
    for layer in layers:
        place = ",".join(filter(None, (layer, *tensors)))
        yield f"{name}{place and '@'}{place}{equals}{value}"


class _Models:
    """Small models of three layers by what they have, and healthy runs of them by mode."""

    def __init__(self, folder: Path):
        self.folder, self._models, self._healthy = folder, {}, {}
        self._models: dict[tuple[str, ...], Model] = {}
        self._healthy: dict[tuple[Any, ...], Trace] = {}

    def tried(self, cause: Cause, text: str, mode: Mode) -> Result:
        model = self.model(cause.needs)
        graph = build_graph(model)
        try:
            faulty = Injection.parse(text).apply(graph)
        except UserError:  # of a tensor outside the layers, or at the end of them
            text = _with_layers(text, [""]).__next__()
            faulty = Injection.parse(text).apply(graph)
        changed = {a.out for a, b in zip(graph.ops, faulty.ops) if a is not b}
        seed = zlib.crc32(text.encode()) % 7
        healthy = self.healthy(cause.needs, mode, seed)
        ids = healthy.tokens.tolist()[:TOKENS]
        ours = self.record(model, self.folder / "ours.h5", mode, seed, ids, Injection.parse(text).apply)
        with ours:
            return judge(f"own: {mode.name}", text, {cause.id}, changed, (ours, healthy), model)

    def model(self, needs: tuple[str, ...]) -> Model:
        if needs not in self._models:
            path = self.folder / f"{'-'.join(('model', *needs))}.gguf"
            self._models[needs] = Model(zoo.write(path, needs, layers=3))
        return self._models[needs]

    def healthy(self, needs: tuple[str, ...], mode: Mode, seed: int) -> Trace:
        key = (needs, mode.name, seed if mode.selection is Half else 0)
        if key not in self._healthy:
            path = self.folder / f"healthy{len(self._healthy)}.h5"
            ids = np.random.default_rng(1).integers(97, 250, TOKENS).tolist()
            self._healthy[key] = self.record(self.model(needs), path, mode, seed, ids)
        return self._healthy[key]

    @staticmethod
    def record(
        model: Model,
        path: Path,
        mode: Mode,
        seed: int,
        ids: list[int],
        change: Callable[[Graph], Graph] = lambda graph: graph,
    ) -> Trace:
        path.unlink(missing_ok=True)
        record_trace(
            model,
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


def _on_smollm2(model: Model, cause: Cause, text: str, folder: Path) -> Iterator[Result]:
    """A prompt of 16 tokens and one decode step, three layers around the fault recorded."""
    graph = build_graph(model)
    try:
        faulty = Injection.parse(text).apply(graph)
    except UserError:
        return  # a fault outside the layers
    changed = {a.out for a, b in zip(graph.ops, faulty.ops) if a is not b}
    ids = [504, 3575, 282, 4649, 314, 7042, 28, 284, 260, 2240, 282, 14794, 314, 2743, 11, 198]
    run = {"n_new": 2, "tile": TILE, "selection": Selection(layers="13-15")}
    healthy, ours = folder / "smollm2.h5", folder / "smollm2-faulty.h5"
    if not healthy.exists():
        record_trace(model, healthy, ids, **run)
    ours.unlink(missing_ok=True)
    record_trace(model, ours, ids, change=Injection.parse(text).apply, **run)
    with Trace(ours) as a, Trace(healthy) as b:
        yield judge("own: SmolLM2, layer 14", text, {cause.id}, changed, (a, b), model)
