"""Recording small traces from tests and from the programs that tests start, and comparing them."""

import hashlib
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from tensortrace.tracer.architecture import build_graph
from tensortrace.tracer.engines.cpu import Engine
from tensortrace.tracer.format import Header
from tensortrace.tracer.gguf import Model
from tensortrace.tracer.graph import Graph
from tensortrace.tracer.names import Key
from tensortrace.tracer.record import Request, Result, record
from tensortrace.tracer.trace import Trace

PROMPT = (84, 104, 101, 32, 259, 260, 271, 97, 98, 99)  # ids of the vocabulary that ggufs.py writes


@cache
def sha256(path: Path) -> str:
    """Not `Model.sha256`, which remembers the sums of all models in the user's cache folder."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def header(model: Model, **settings: Any) -> Header:
    """What the command line states of a run."""
    return Header(
        engine="",
        model_name=model.name,
        model_sha256=sha256(model.path),
        architecture=model.arch,
        settings=settings,
    )


def record_trace(
    model: Model | Path,
    path: Path,
    ids: Sequence[int] = PROMPT,
    *,
    dtype: str = "float32",
    softmax: str = "online",
    tile: int = 128,
    change: Callable[[Graph], Graph] = lambda graph: graph,
    on_token: Callable[[int], None] = lambda token: None,
    **request: Any,
) -> Result:
    """Run `model` on the CPU engine and record it to `path`; `request` as `record.Request` takes it.

    `change` may put a fault into the graph.
    """
    model = Model(model) if isinstance(model, Path) else model
    graph = change(build_graph(model, softmax=softmax, tile=tile))
    engine = Engine(graph, model, dtype=dtype)
    asked = Request(ids, **request)
    head = header(model, softmax=softmax, tile=tile, chunk=asked.chunk)
    return record(engine, asked, path, head, on_token=on_token)


def nrmse(a: np.ndarray, b: np.ndarray) -> float:
    """||a - b|| / ||b|| over the finite entries; infinite where the shapes or the masks differ."""
    finite = np.isfinite(b)
    if a.shape != b.shape or not np.array_equal(np.isfinite(a), finite):
        return float("inf")
    a, b = a[finite].astype(np.float64), b[finite].astype(np.float64)
    return float(np.linalg.norm(a - b) / (np.linalg.norm(b) or 1.0))


def distances(a: Trace, b: Trace, names: str = "") -> dict[tuple[int, Key], float]:
    """The NRMSE of every tensor of every step of `a` against `b`; `names` chooses some, by spaces."""
    return {
        (step.index, key): nrmse(a.read(key, step.index), b.read(key, step.index))
        for step in b.flushed
        for key in b.tensors
        if not names or key.name in names.split()
    }


def worst(found: dict[tuple[int, Key], float]) -> str:
    """The largest distance, told so that a failed test says where to look."""
    (step, key), value = max(found.items(), key=lambda entry: entry[1])
    return f"{key} of step {step}: {value:.2e}"
