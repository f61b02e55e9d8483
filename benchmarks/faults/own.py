"""Own faults: every case of every cause put into our CPU engine by --inject."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import zoo
from architecture import ARCHITECTURES
from faults import models
from faults.judging import TILE, Result, judge
from faults.runs import MODES, PHASES, Elsewhere, Mode, Runs, turn
from recording import record_trace
from tensortrace.analyze.cause import Cause, Injection, causes
from tensortrace.tracer.architecture import build_graph
from tensortrace.tracer.errors import UserError
from tensortrace.tracer.gguf import Model
from tensortrace.tracer.hub import resolve
from tensortrace.tracer.selection import Selection
from tensortrace.tracer.trace import Trace

PLACES = ("first", "middle", "last", "")


def own(folder: Path, quick: bool) -> Iterator[Result]:
    """Every case of every cause on models made for them, on SmolLM2, and on each architecture."""
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        meanwhile = pool.map(partial(_of_architecture, folder, quick), ARCHITECTURES)
        yield from _made_for(folder, quick)
        if not quick:
            yield from _on_smollm2(folder)
        for results in meanwhile:
            yield from results


def _injectable() -> list[Cause]:
    return [cause for cause in causes().values() if type(cause).change is not Cause.change]


# ---- models that have what a cause needs


def _made_for(folder: Path, quick: bool) -> Iterator[Result]:
    known: dict[tuple[str, ...], Runs] = {}
    for cause in _injectable():
        if cause.needs not in known:
            path = folder / f"{'-'.join(('model', *cause.needs))}.gguf"
            known[cause.needs] = Runs(Model(zoo.write(path, cause.needs, layers=3)), folder)
        for text in _faults(cause, quick):
            for mode in _modes(text, quick):
                yield _tried(known[cause.needs], f"own: {mode.name}", text, mode)


def _tried(runs: Runs, group: str, text: str, mode: Mode) -> Result:
    try:
        return runs.tried(group, text, mode)
    except Elsewhere:  # of a tensor outside the layers, or at the end of them
        return runs.tried(group, in_layer(text, ""), mode)


def _modes(text: str, quick: bool) -> list[Mode]:
    """Everything recorded, and two other modes in turn, by the fault."""
    rest = MODES[1:]
    first = turn(text, len(rest))
    return [MODES[0], rest[first], *([] if quick else [rest[(first + 3) % len(rest)]])]


def _faults(cause: Cause, quick: bool) -> list[str]:
    """The cases of a cause: the first in the first, the middle, the last and all layers, others in two."""
    first, *others = cause.fires
    found = _in_layers(first, ["0", ""] if quick else ["0", "1", "2", ""])
    for text in [] if quick else others:
        found += _in_layers(text, ["1", ""])
    return list(dict.fromkeys(found))


def _in_layers(text: str, layers: Sequence[str]) -> list[str]:
    return [in_layer(text, layer) for layer in layers]


def in_layer(text: str, layer: str) -> str:
    """An injection with another layer in it, or none."""
    head, equals, value = text.partition("=")
    name, _, where = head.partition("@")
    tensors = [part for part in where.split(",") if part and not part[0].isdigit()]
    place = ",".join(filter(None, (layer, *tensors)))
    return f"{name}{place and '@'}{place}{equals}{value}"


# ---- architectures


def _of_architecture(folder: Path, quick: bool, arch: str) -> list[Result]:
    """Every case of every cause that can be in it: in one of four places and one of three phases in turn."""
    folder = folder / arch
    folder.mkdir()
    model = Model(models.write(folder, arch))
    runs, found, layers = Runs(model, folder), [], model.hparam("block_count")
    places = {"first": "0", "middle": str(layers // 2), "last": str(layers - 1), "": ""}
    for cause in _injectable():
        for text in dict.fromkeys(in_layer(text, "") for text in cause.fires[: 1 if quick else None]):
            found += _placed(runs, arch, text, places)
    return found


def _placed(runs: Runs, arch: str, text: str, places: dict[str, str]) -> Iterator[Result]:
    """A fault where its turn is; where it cannot be there, wherever it can; nothing where it fits nowhere."""
    at = turn(f"{arch} {text}", len(PLACES))
    phase = (*PHASES, "", "")[turn(f"{text} {arch}", 4)]
    mode = MODES[turn(f"{arch}: {text}", 2)]
    for place in (PLACES[at], ""):
        for when in dict.fromkeys((phase, "")):
            try:
                yield runs.tried(f"own: {arch}", in_layer(text, places[place]), mode, when)
            except Elsewhere:
                continue
            return


# ---- a real model


def _on_smollm2(folder: Path) -> Iterator[Result]:
    """A prompt of 16 tokens and one decode step, the first, the middle or the last three layers recorded."""
    model = Model(resolve("smollm2-135m"))
    graph = build_graph(model)
    ids = [504, 3575, 282, 4649, 314, 7042, 28, 284, 260, 2240, 282, 14794, 314, 2743, 11, 198]
    for place in ("0-2", "13-15", "27-29"):
        run = {"n_new": 2, "tile": TILE, "selection": Selection(layers=place)}
        layer = str(int(place.split("-")[0]) + 1)
        healthy, ours = folder / f"smollm2-{place}.h5", folder / "smollm2-faulty.h5"
        record_trace(model, healthy, ids, **run)
        for cause in _injectable():
            text = in_layer(cause.fires[0], layer)
            try:
                faulty = Injection.parse(text).apply(graph)
            except UserError:
                continue  # a fault outside the layers, or of another architecture
            changed = {a.out for a, b in zip(graph.ops, faulty.ops) if a is not b}
            ours.unlink(missing_ok=True)
            record_trace(model, ours, ids, change=Injection.parse(text).apply, **run)
            with Trace(ours) as a, Trace(healthy) as b:
                yield judge(f"own: SmolLM2, layer {layer}", text, {cause.id}, changed, (a, b), model)
