"""The fault zoo: how often the first faulty op and its cause are named, and how often rounding is called one.

    python benchmarks/causes.py --out benchmarks/results/causes [--quick] [--only own|foreign|healthy]

Writes OUT.json and OUT.md.  *Own* faults are every case of every cause (`Cause.fires`) put into our CPU
engine by --inject, in the first, middle, last and all layers; *foreign* ones are put into transformers by
patching its functions, modules and weights (benchmarks/foreign.py); *healthy* pairs (benchmarks/healthy.py)
differ in engine, precision, storage, softmax, chunks and text, and nothing may be found in them.  What counts
is what `trace compare --model` prints.  Needs the `torch` and `llamacpp` extras but for `--only own`.
"""

import argparse
import json
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import zoo
from recording import record_trace
from tensortrace.analyze.cause import Cause, Injection, causes
from tensortrace.analyze.compare import Comparison, compare
from tensortrace.analyze.find import name_causes
from tensortrace.analyze.replay import Replay
from tensortrace.analyze.segment import Segment
from tensortrace.tracer.architecture import build_graph
from tensortrace.tracer.errors import UserError
from tensortrace.tracer.gguf import Model
from tensortrace.tracer.graph import Graph
from tensortrace.tracer.hub import resolve
from tensortrace.tracer.names import Key
from tensortrace.tracer.selection import Selection
from tensortrace.tracer.trace import Trace

TOKENS, NEW, TILE = 24, 4, 8
ROUNDING = 1e-5  # of the logits, from which on a fault has an effect
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


@dataclass(frozen=True)
class Result:
    """One faulty run: whether it shows in the logits, was detected, placed, and named."""

    group: str
    fault: str
    shows: bool
    detected: bool
    first: bool
    rank: int  # of the right cause among those listed, from 1; 0 where it is not
    equal: bool  # named first, or among those that cannot be told from the first
    found: str


def judge(
    group: str, fault: str, ids: set[str], changed: set[Key], pair: tuple[Trace, Trace], model: Model
) -> Result:
    """What compare makes of a faulty trace; `ids` are right, `changed` the outputs of the faulty ops."""
    ours, reference = pair
    found = name_causes(compare(ours, reference), ours, reference, model)
    named = [cause.id for cause in found.causes]
    rank = next((index for index, name in enumerate(named, 1) if name in ids), 0)
    equal = rank == 1 or (bool(rank) and _told_together(found, ids))
    text = found.verdict if found.first is None else f"{found.first.key} of step {found.first.step}: {named}"
    return Result(
        group,
        fault,
        _shows(ours, reference),
        found.verdict == "diverged",
        found.first is not None and _is_right(found, changed, ours, model),
        rank,
        equal,
        text,
    )


def _told_together(found: Comparison, ids: set[str]) -> bool:
    return any(name in found.causes[0].evidence.partition(";")[2] for name in ids)


def _is_right(found: Comparison, changed: set[Key], trace: Trace, model: Model) -> bool:
    """Whether a faulty op is the first divergence's, or one of those not recorded that lead to it."""
    assert found.first is not None
    replay = Replay(trace, model)
    op = replay.graph.producer(found.first.key)
    if op is None:
        return False
    return bool(changed & {each.out for each in Segment(replay, op, found.first.step).ops})


def _shows(ours: Trace, reference: Trace) -> bool:
    key = Key(None, "logits")
    for step in reference.flushed:
        if step.index >= len(ours.flushed) or not np.array_equal(
            ours.tokens[: step.kv_len], reference.tokens[: step.kv_len]
        ):
            return True  # another token was generated
        a, b = (trace.read(key, step.index).astype(float) for trace in (ours, reference))
        if not np.linalg.norm(a - b) <= ROUNDING * np.linalg.norm(b):
            return True
    return False


# ---- own faults


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


# ---- the report


def summary(results: Sequence[Result]) -> list[dict[str, Any]]:
    """One row for each group: shares are of the faults that show in the logits."""
    rows = []
    for group in dict.fromkeys(result.group for result in results):
        shown = [result for result in results if result.group == group and result.shows]
        rows.append(
            {
                "group": group,
                "faults": len(shown),
                "detected": sum(result.detected for result in shown),
                "first op": sum(result.first for result in shown),
                "top-1": sum(result.rank == 1 for result in shown),
                "top-1 or told together": sum(result.equal for result in shown),
                "top-3": sum(0 < result.rank <= 3 for result in shown),
                "hidden": sum(result.group == group and not result.shows for result in results),
            }
        )
    return rows


def markdown(report: dict[str, Any]) -> str:
    """The committed page."""
    results = [Result(**each) for part in PARTS[:2] if part in report for each in report[part]["found"]]
    lines = [
        "# The fault zoo",
        "",
        f"{len(causes())} causes; made by `python benchmarks/causes.py`. Shares are of the faults that "
        f"change the logits by more than {ROUNDING:g}; *told together*: among causes that explain as much "
        "and cannot be told apart from what was recorded.",
        "",
        "| faults | number | detected | first op right | cause first | or told together | in first three |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in summary(results):
        count = row["faults"]
        shares = (row[name] for name in ("detected", "first op", "top-1", "top-1 or told together", "top-3"))
        cells = (f"{100 * share / max(count, 1):.1f}%" for share in shares)
        lines.append(f"| {row['group']} | {count} | {' | '.join(cells)} |")
    if healthy := report.get("healthy", {}).get("found"):
        lines += ["", f"Healthy pairs: {healthy['pairs']}, false alarms: {len(healthy['alarms'])}.", ""]
        lines += [f"- {name}: {count} pairs" for name, count in healthy["kinds"].items()]
        lines += [f"- **false alarm**: {alarm}" for alarm in healthy["alarms"]]
    shown = [result for result in results if result.shows]
    missed = [each for each in shown if not (each.detected and each.first and each.equal)]
    lines += ["", "## Not as it should be", ""]
    lines += [f"- {each.group}: `{each.fault}` → {each.found}" for each in missed] or ["Nothing."]
    for part in PARTS:
        if part in report:
            quick = ", quick" if report[part]["quick"] else ""
            lines += ["", f"{part}: {report[part]['date']}, {report[part]['seconds']} s{quick}."]
    return "\n".join(lines) + "\n"


PARTS = ("own", "foreign", "healthy")


def measure(part: str, quick: bool) -> dict[str, Any]:
    """One part of the report."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        if part == "own":
            found: Any = [asdict(result) for result in own(Path(folder), quick)]
        elif part == "foreign":
            from foreign import faults

            found = [asdict(result) for result in faults(Path(folder), quick)]
        else:
            from healthy import pairs

            found = pairs(Path(folder), quick)
    seconds = round(time.perf_counter() - began)
    return {"date": date.today().isoformat(), "seconds": seconds, "quick": quick, "found": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--quick", action="store_true", help="one case of each cause, few places and pairs")
    parser.add_argument("--only", choices=PARTS, help="the others stay as OUT.json has them")
    options = parser.parse_args()
    file = options.out.with_suffix(".json")
    report = json.loads(file.read_text()) if options.only and file.exists() else {}
    for part in [options.only] if options.only else PARTS:
        report[part] = measure(part, options.quick)
    file.write_text(json.dumps(report, indent=1) + "\n")
    options.out.with_suffix(".md").write_text(markdown(report))
    print(markdown(report))


if __name__ == "__main__":
    main()
