"""Pairs of healthy runs that differ only by rounding: any finding is a false alarm."""

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from architecture import ARCHITECTURES
from faults import models
from faults.judging import TILE
from faults.not_bugs import EQUIVALENT
from ggufs import Weights, write_gguf
from recording import header, record_trace
from tensortrace.analyze.compare import compare
from tensortrace.analyze.find import name_causes
from tensortrace.tracer.architecture import build_graph
from tensortrace.tracer.gguf import Model
from tensortrace.tracer.hub import resolve
from tensortrace.tracer.names import Key
from tensortrace.tracer.record import Request, record
from tensortrace.tracer.trace import Trace
from tensortrace.tracer.writer import TraceWriter

Run = Callable[[Model, Path, list[int]], Any]
NEW = 4
ENGINES = ("cpu", "torch", "llama.cpp", "cuda", "cuda on the host")


def ours(model: Model, path: Path, ids: list[int], dtype: str = "float32", **options: Any) -> None:
    record_trace(model, path, ids, dtype=dtype, n_new=NEW, **{"tile": TILE, **options})


def by_torch(model: Model, path: Path, ids: list[int], dtype: str = "float32") -> None:
    from tensortrace.tracer.engines import torch

    source: Any = model
    if model.arch != "llama":  # transformers loads few GGUFs
        import transformers_models

        source = transformers_models.save(model, path.with_suffix(""))
    _recorded(torch.Engine(build_graph(model), source, dtype=dtype), model, path, ids)


def by_llama_cpp(model: Model, path: Path, ids: list[int], chunk: int | None = None, **options: Any) -> None:
    from tensortrace.tracer.engines import llama_cpp

    _recorded(llama_cpp.Engine(build_graph(model), model, **options), model, path, ids, chunk=chunk)


def by_cuda(model: Model, path: Path, ids: list[int], chunk: int | None = None, **options: Any) -> None:
    from tensortrace.tracer.engines import cuda

    graph = build_graph(model, tile=TILE)
    _recorded(cuda.Engine(graph, model, **options), model, path, ids, chunk=chunk, tile=TILE)


def by_host_cuda(model: Model, path: Path, ids: list[int], **options: Any) -> None:
    """The CUDA kernels compiled for the CPU."""
    from fake_device import FakeDevice
    from host_gpu import HostDevice
    from tensortrace.kernels import cuda as gpu

    folder = Path(tempfile.gettempdir()) / "host_cuda"
    folder.mkdir(exist_ok=True)
    host = HostDevice(folder)
    with ExitStack() as stack:
        for name in ("empty", "zeros", "kernel", "matmul"):
            stack.enter_context(patch.object(gpu, name, getattr(host, name)))
        by_cuda(model, path, ids, device=FakeDevice(host), **options)


def _recorded(
    engine: Any, model: Model, path: Path, ids: list[int], chunk: int | None = None, **settings: Any
) -> None:
    settings |= getattr(engine, "settings", {})
    record(engine, Request(ids, n_new=NEW, chunk=chunk), path, header(model, **settings))


@dataclass(frozen=True)
class Kind:
    """One way to run, on the models that it can be done with."""

    name: str
    engine: str
    run: Run
    fits: Callable[[Model], bool]


def kind(
    name: str,
    engine: str,
    run: Callable[..., None],
    fits: Callable[[Model], bool] = lambda model: True,
    **options: Any,
) -> Kind:
    return Kind(name, engine, partial(run, **options), fits)


def small(model: Model) -> bool:
    return model.arch == "llama" and model.hparam("block_count") < 10


def whole_blocks(model: Model) -> bool:
    """Heads that a cache in 8 or 4 bits can hold."""
    return model.hparam("attention.key_length", 64) % 32 == 0


REFERENCE = kind("cpu f32", "cpu", ours)
KINDS = (
    kind("cpu f64", "cpu", ours, dtype="float64", storage="float64"),
    kind("two-pass softmax", "cpu", ours, softmax="two-pass"),
    kind("tiles of 5", "cpu", ours, tile=5),
    kind("chunks of 7", "cpu", ours, chunk=7),
    kind("stored as f16", "cpu", ours, storage="float16"),
    kind("stored as bf16", "cpu", ours, storage="bfloat16"),
    kind("torch f32", "torch", by_torch),
    kind("torch bf16", "torch", by_torch, dtype="bfloat16"),
    kind("torch f16", "torch", by_torch, dtype="float16"),
    kind("llama.cpp", "llama.cpp", by_llama_cpp),
    kind("llama.cpp, f16 cache, chunks", "llama.cpp", by_llama_cpp, kv="f16", chunk=7),
    kind("llama.cpp, flash attention", "llama.cpp", by_llama_cpp, flash=True),
    kind("llama.cpp, flash attention, f16 cache", "llama.cpp", by_llama_cpp, flash=True, kv="f16"),
    kind("llama.cpp, q8_0 cache", "llama.cpp", by_llama_cpp, flash=True, kv="q8_0", fits=whole_blocks),
    kind("cuda f32", "cuda", by_cuda),
    kind("cuda f16", "cuda", by_cuda, dtype="float16"),
    kind("cuda bf16", "cuda", by_cuda, dtype="bfloat16"),
    kind("cuda f32, chunks of 7", "cuda", by_cuda, chunk=7),
    kind("cuda kernels on the host, f32", "cuda on the host", by_host_cuda, fits=small),
    kind("cuda kernels on the host, bf16", "cuda on the host", by_host_cuda, fits=small, dtype="bfloat16"),
)
DEFAULT = ("cpu", "torch", "llama.cpp", "cuda on the host")


def pairs(folder: Path, quick: bool, engines: tuple[str, ...] = DEFAULT) -> dict[str, Any]:
    """Every kind of run against our float32 one, both ways round, on several models and texts."""
    tally = Tally()
    kinds = [each for each in KINDS if each.engine in engines]
    for model, texts in _models(folder, quick):
        for number, ids in enumerate(texts):
            label = f"{model.path.stem}, text {number}"
            reference = _traced(REFERENCE.run, model, folder / "reference.h5", ids)
            for each in kinds:
                if not each.fits(model) or (quick and each.engine != "cpu"):
                    continue
                other = _traced(each.run, model, folder / "other.h5", ids)
                tally.add(each.name, label, model, other, reference)
    if "cpu" in engines:
        _not_bugs(folder, tally)
    return {"pairs": sum(tally.kinds.values()), "kinds": dict(tally.kinds), "alarms": tally.alarms}


class Tally:
    def __init__(self) -> None:
        self.kinds: Counter[str] = Counter()
        self.alarms: list[str] = []

    def add(self, name: str, label: str, model: Model, one: Trace, other: Trace) -> None:
        """Both ways round."""
        self.kinds[name] += 2
        for a, b in ((one, other), (other, one)):
            found = name_causes(compare(a, b), a, b, model)
            if found.exit_code:
                causes = [cause.id for cause in found.causes]
                self.alarms.append(f"{name}, {label}: {found.sentence} {causes}")


def _traced(run: Run, model: Model, path: Path, ids: list[int]) -> Trace:
    path.unlink(missing_ok=True)
    run(model, path, ids)
    return Trace(path)


SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "one KV head": {"heads": 8, "kv_heads": 1, "head_dim": 8, "rope_base": 5e5},
    "tied": {"tied": True, "eps": 1e-6, "seed": 6},
    "heads of 32": {"head_dim": 32, "seed": 12},
    "Q8_0": {"qtype": "Q8_0", "seed": 3},
    "Q4_1": {"qtype": "Q4_1", "seed": 4, "layers": 3},
    "Q4_0": {"qtype": "Q4_0", "seed": 7},
    "Q5_0": {"qtype": "Q5_0", "seed": 8},
    "Q5_1": {"qtype": "Q5_1", "seed": 9},
    "F16": {"qtype": "F16", "seed": 10},
    "BF16": {"qtype": "BF16", "seed": 11},
}


def _models(folder: Path, quick: bool) -> Iterator[tuple[Model, list[list[int]]]]:
    """Small models of Llama's shape in several types, each architecture's, and SmolLM2; and their texts."""
    random = np.random.default_rng(4)

    def texts(*lengths: int) -> list[list[int]]:
        return [random.integers(97, 250, length).tolist() for length in lengths]

    for number, (name, shape) in enumerate(list(SHAPES.items())[: 2 if quick else None]):
        path = write_gguf(folder / f"{name.replace(' ', '-')}.gguf", **shape)
        yield Model(path), texts(24, 40) if number < 5 else texts(24)
    for arch in () if quick else ARCHITECTURES:
        yield Model(models.write(folder, arch)), texts(24)
    if not quick:
        yield Model(resolve("smollm2-135m")), [random.integers(100, 40_000, 24).tolist()]


# ---- not bugs


def _not_bugs(folder: Path, tally: Tally) -> None:
    ids = np.random.default_rng(6).integers(97, 250, 24).tolist()
    for name, each in EQUIVALENT.items():
        for place in each.on:
            model = _model(folder, place)
            run = partial(ours, selection=each.selection)
            reference = _traced(run, model, folder / "reference.h5", ids)
            other = _traced(partial(run, change=each.graph), model, folder / "other.h5", ids)
            tally.add(f"not a bug: {name}", place, model, other, reference)
    model = _model(folder, "llama")
    reference = _traced(REFERENCE.run, model, folder / "reference.h5", ids)
    tally.add("not a bug: Q and K permuted alike", "llama", model, _permuted(reference), reference)


def _model(folder: Path, place: str) -> Model:
    if place == "llama tiny eps":
        return Model(write_gguf(folder / "tiny-eps.gguf", eps=1e-9))
    if place == "qwen3 without gain":
        return Model(write_gguf(folder / "without-gain.gguf", "qwen3", qk_norm=True, change=_without_gain))
    return Model(models.write(folder, place))


def _without_gain(weights: Weights) -> Weights:
    plain = {name: np.ones_like(w) for name, w in weights.items() if "q_norm" in name or "k_norm" in name}
    return weights | plain


def _permuted(trace: Trace) -> Trace:
    """A copy in which the elements of Q and K are in another order, as some engines keep them."""
    path = trace.path.with_name("permuted.h5")
    path.unlink(missing_ok=True)
    specs = [replace(spec, conventions={}) for spec in trace.tensors.values()]
    with TraceWriter(path, trace.header, specs, trace.steps) as writer:
        for step in trace.steps:
            writer.write_tokens(step.start, trace.tokens[step.start : step.kv_len])
            for spec in specs:
                writer.write(step.index, spec.key, _apart(spec.key, trace.read(spec.key, step.index)))
            writer.end_step(step.index)
        writer.finish()
    return Trace(path)


def _apart(key: Key, array: np.ndarray) -> np.ndarray:
    paired = key.name in ("q", "k", "q_rope", "k_rope")
    return np.concatenate([array[..., ::2], array[..., 1::2]], -1) if paired else array
