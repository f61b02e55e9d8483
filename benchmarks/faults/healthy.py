"""Pairs of healthy runs that differ only by rounding: any finding is a false alarm."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from faults.judging import TILE
from ggufs import write_gguf
from recording import header, record_trace
from tensortrace.analyze.compare import compare
from tensortrace.analyze.find import name_causes
from tensortrace.tracer.architecture import build_graph
from tensortrace.tracer.engines import llama_cpp
from tensortrace.tracer.engines import torch as torch_engine
from tensortrace.tracer.gguf import Model
from tensortrace.tracer.graph import Graph, Op
from tensortrace.tracer.hub import resolve
from tensortrace.tracer.record import Request, record
from tensortrace.tracer.trace import Trace

Run = Callable[[Model, Path, list[int]], Any]
NEW = 4


def ours(dtype: str = "float32", **options: Any) -> Run:
    return lambda model, path, ids: record_trace(model, path, ids, dtype=dtype, n_new=NEW, **options)


def theirs(load: Callable[[Model], Any], **options: Any) -> Run:
    def run(model: Model, path: Path, ids: list[int]) -> None:
        engine = load(model)
        request = Request(ids, n_new=NEW, **options)
        record(engine, request, path, header(model, **getattr(engine, "settings", {})))

    return run


def changed(change: Callable[[Op], Op]) -> Run:
    """One of what looks like a fault and is none, put into our engine."""

    def graph(made: Graph) -> Graph:
        return made.replace(change)

    return lambda model, path, ids: record_trace(model, path, ids, n_new=NEW, tile=TILE, change=graph)


def heads_in_order(op: Op) -> Op:
    """Softmax is blind to the order of keys: attention over reversed heads, put back."""

    def wrap(compute: Callable[..., Any]) -> Callable[..., Any]:
        def reordered(q: Any, k: Any, v: Any, **params: Any) -> Any:
            made = compute(q[:, ::-1].copy(), k[:, ::-1].copy(), v[:, ::-1].copy(), **params)
            axis = {"out": 1, "m_tiles": 1, "l_tiles": 1}
            return {name: np.flip(array, axis.get(name, 0)).copy() for name, array in made.items()}

        return reordered

    return op.wrapped(wrap) if op.kind == "attention" else op


def scale_in_q(op: Op) -> Op:
    """The softmax scale folded into Q before the product, in another order of operations."""

    def wrap(compute: Callable[..., Any]) -> Callable[..., Any]:
        def folded(q: Any, k: Any, v: Any, *, scale: float, **params: Any) -> Any:
            return compute(q * q.dtype.type(scale**0.5), k * k.dtype.type(scale**0.5), v, scale=1.0, **params)

        return folded

    return op.wrapped(wrap) if op.kind == "attention" else op


RUNS: dict[str, Run] = {
    "cpu f32": ours(tile=TILE),
    "cpu f64": ours("float64", storage="float64", tile=TILE),
    "two-pass softmax": ours(softmax="two-pass", tile=TILE),
    "tiles of 5": ours(tile=5),
    "chunks of 7": ours(chunk=7, tile=TILE),
    "stored as f16": ours(storage="float16", tile=TILE),
    "stored as bf16": ours(storage="bfloat16", tile=TILE),
    "torch f32": theirs(lambda model: torch_engine.Engine(build_graph(model), model)),
    "torch bf16": theirs(lambda model: torch_engine.Engine(build_graph(model), model, dtype="bfloat16")),
    "torch f16": theirs(lambda model: torch_engine.Engine(build_graph(model), model, dtype="float16")),
    "llama.cpp": theirs(lambda model: llama_cpp.Engine(build_graph(model), model)),
    "llama.cpp, f16 cache, chunks": theirs(
        lambda model: llama_cpp.Engine(build_graph(model), model, kv="f16"), chunk=7
    ),
    "not a bug: heads in another order": changed(heads_in_order),
    "not a bug: scale folded into Q": changed(scale_in_q),
}


def pairs(folder: Path, quick: bool) -> dict[str, Any]:
    """Every kind of run against our float32 one, both ways round, on several models and texts."""
    kinds: Counter[str] = Counter()
    alarms = []
    for model, texts in models(folder, quick):
        for number, ids in enumerate(texts):
            traces = dict(_traces(model, folder, ids, quick))
            for name, other in traces.items():
                kinds[name] += 2
                for a, b in ((other, traces["cpu f32"]), (traces["cpu f32"], other)):
                    found = name_causes(compare(a, b), a, b, model)
                    if found.exit_code:
                        causes = [cause.id for cause in found.causes]
                        alarms.append(f"{name}, {model.name}, text {number}: {found.sentence} {causes}")
    return {"pairs": sum(kinds.values()), "kinds": dict(kinds), "alarms": alarms}


def models(folder: Path, quick: bool) -> Iterator[tuple[Model, list[list[int]]]]:
    random = np.random.default_rng(4)
    shapes = (
        {},
        {"heads": 8, "kv_heads": 1, "head_dim": 8, "rope_base": 5e5},
        {"qtype": "Q8_0", "seed": 3},
        {"qtype": "Q4_1", "seed": 4, "layers": 3},
        {"tied": True, "eps": 1e-6, "seed": 6},
    )
    for number, shape in enumerate(shapes[: 2 if quick else None]):
        path = write_gguf(folder / f"healthy{number}.gguf", **shape)
        yield Model(path), [random.integers(97, 250, length).tolist() for length in (24, 40)]
    if not quick:
        yield Model(resolve("smollm2-135m")), [random.integers(100, 40_000, 24).tolist()]


def _traces(model: Model, folder: Path, ids: list[int], quick: bool) -> Iterator[tuple[str, Trace]]:
    for number, (name, run) in enumerate(RUNS.items()):
        if quick and name.startswith(("torch", "llama")):
            continue
        path = folder / f"pair{number}.h5"
        path.unlink(missing_ok=True)
        run(model, path, ids)
        yield name, Trace(path)
