"""What recording costs: against the same run without it, a plain file, and hooks in transformers.

    env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE python benchmarks/record.py --out benchmarks/results/record

Writes OUT.json and OUT.md.  Both sides of every ratio run in turn, in one process; the best time of each
counts, as whatever else the machine does only ever adds.  The last part needs the `torch` extra.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from tensortrace.tracer.architecture import build_graph
from tensortrace.tracer.engines.cpu import Engine
from tensortrace.tracer.format import Header, Step, TensorSpec, plan_steps
from tensortrace.tracer.gguf import Model
from tensortrace.tracer.hub import resolve
from tensortrace.tracer.names import Key
from tensortrace.tracer.plan import tensor_specs
from tensortrace.tracer.record import Request, record
from tensortrace.tracer.selection import Selection
from tensortrace.tracer.trace import Trace
from tensortrace.tracer.writer import TraceWriter

PREFILL, DECODE = 512, 64
NO_SOFTMAX_STATE = (
    "embd,attn*,q*,k*,v,scores,probs,resid*,ffn*,gate,up,act,final_norm,logits"  # what torch has
)
Row = dict[str, Any]


def best(repeat: int, *bodies: Callable[[], float]) -> list[float]:
    """The least seconds of each body, run in turn."""
    times: list[list[float]] = [[] for _ in bodies]
    for _ in range(repeat):
        for body, kept in zip(bodies, times):
            kept.append(body())
    return [min(kept) for kept in times]


def row(what: str, ours: float, other: float, goal: float | None, **more: Any) -> Row:
    print(f"{what}: {ours:.2f} s / {other:.2f} s = {ours / other:.2f}", flush=True)
    return {"what": what, "ours_s": ours, "other_s": other, "ratio": ours / other, "goal": goal, **more}


# ---- recording against not recording


class Run:
    """Runs SmolLM2 on random ids, greedily, timed from the first step to the closed file."""

    def __init__(self, model: Model, folder: Path):
        graph = build_graph(model)
        self.engine, self.path = Engine(graph, model), folder / "run.h5"
        self.ids = np.random.default_rng(0).integers(100, 40_000, PREFILL).tolist()

    def plain(self, n_prompt: int, n_new: int) -> float:
        """The loop of `record` with nothing recorded and no file; seconds of the decode steps if any."""
        steps = plan_steps(n_prompt, n_new)
        stepper, ids = self.engine.start((), steps[-1].kv_len), list(self.ids[:n_prompt])
        start = time.perf_counter()
        for step in steps:
            logits = stepper.step(step, np.asarray(ids[step.start : step.kv_len]), lambda key, array: None)
            ids.append(int(logits[-1].argmax()))
            if step.phase == "prefill" and n_new > 1:
                start = time.perf_counter()
        return time.perf_counter() - start

    def recorded(self, n_prompt: int, n_new: int, tensors: str | None = None) -> float:
        self.path.unlink(missing_ok=True)
        request = Request(self.ids[:n_prompt], n_new=n_new, selection=Selection(tensors=tensors))
        started: list[float] = [time.perf_counter()]

        def stepped(step: Step) -> None:
            if step.phase == "prefill" and n_new > 1:
                started.append(time.perf_counter())

        record(self.engine, request, self.path, Header(engine=""), on_step=stepped)
        return time.perf_counter() - started[-1]


def against_nothing(run: Run, folder: Path, repeat: int) -> list[Row]:
    run.plain(8, 2)  # dequantise the weights
    rows = []
    for what, prompt, new, goal in (("prefill", PREFILL, 1, 1.15), ("decode", 64, DECODE + 1, 1.3)):
        ours, other = best(
            repeat,
            lambda p=prompt, n=new: run.recorded(p, n),
            lambda p=prompt, n=new: run.plain(p, n),
        )
        count, size = (PREFILL if what == "prefill" else DECODE), run.path.stat().st_size
        rows.append(
            row(f"{what} of {count} tokens, everything recorded / nothing", ours, other, goal, bytes=size)
        )
        if what == "prefill":
            sides = partial(_beside, run, folder, size), partial(run.plain, PREFILL, 1)
            both, alone = best(repeat, *sides)
            name = f"the floor: {what} beside a thread that writes as many bytes to a plain file / alone"
            rows.append(row(name, both, alone, None, bytes=size))
    return rows


def _beside(run: Run, folder: Path, size: int) -> float:
    """Seconds until both are done: computing, and writing `size` bytes as fast as the machine does."""
    (folder / "beside.bin").unlink(missing_ok=True)
    chunk = np.ones(1 << 20, np.uint8)

    def write() -> None:
        with (folder / "beside.bin").open("wb", buffering=0) as file:
            for _ in range(size // len(chunk)):
                file.write(chunk)

    start, thread = time.perf_counter(), threading.Thread(target=write)
    thread.start()
    run.plain(PREFILL, 1)
    thread.join()
    return time.perf_counter() - start


# ---- writing against a plain file


def against_plain_file(model: Model, folder: Path, repeat: int) -> list[Row]:
    graph = build_graph(model)
    specs = tensor_specs(graph, graph.outputs, "float32")
    decode, prefill = plan_steps(32, 225), plan_steps(PREFILL, 1)
    return [
        *_write_rows("224 decode steps, one row of each tensor", specs, decode, decode[1:], folder, repeat),
        *_write_rows(f"a prefill of {PREFILL} tokens", specs, prefill, prefill, folder, repeat),
    ]


def _write_rows(
    what: str, specs: list[TensorSpec], steps: list[Step], written: list[Step], folder: Path, repeat: int
) -> list[Row]:
    """The trace and the plain file get the same arrays; one step's serve for all steps of its kind."""
    last = steps[-1].kv_len
    largest = {
        spec.key: np.ones(spec.shape(max(s.n_tokens for s in written), last), np.float32) for spec in specs
    }

    def piece(spec: TensorSpec, step: Step) -> np.ndarray:
        shape = spec.shape(step.n_tokens, step.kv_len)
        return largest[spec.key].ravel()[: int(np.prod(shape))].reshape(shape)

    arrays = {step.index: {spec.key: piece(spec, step) for spec in specs} for step in written}
    total = sum(array.nbytes for by_key in arrays.values() for array in by_key.values())

    def trace() -> float:
        (folder / "write.h5").unlink(missing_ok=True)
        start = time.perf_counter()
        with TraceWriter(folder / "write.h5", Header(engine="benchmark"), specs, steps) as writer:
            for step in written:
                for key, array in arrays[step.index].items():
                    writer.write(step.index, key, array)
                writer.end_step(step.index)
            writer.finish()
        return time.perf_counter() - start

    def plain(buffering: int) -> float:
        (folder / "write.bin").unlink(missing_ok=True)
        start = time.perf_counter()
        with (folder / "write.bin").open("wb", buffering=buffering) as file:
            for step in written:
                for array in arrays[step.index].values():
                    file.write(array)
        return time.perf_counter() - start

    sides = trace, partial(plain, -1), partial(plain, 1 << 20)
    ours, other, gathered = best(repeat, *sides)
    return [
        row(f"{what}: trace / plain file", ours, other, 1.5, bytes=total),
        row(f"{what}: trace / plain file that gathers 1 MB at a time", ours, gathered, None, bytes=total),
    ]


# ---- against transformers with hooks


def against_transformers(run: Run, folder: Path, repeat: int) -> list[Row]:
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from transformers_reference import Capture, load

    torch_model = load(resolve())

    def hooked(n_prompt: int, n_new: int) -> float:
        """Every step's tensors from forward hooks into datasets of their own, as one does by hand."""
        capture, fed = Capture(torch_model, tile=None), run.ids[:n_prompt]
        (folder / "hooks.h5").unlink(missing_ok=True)
        start = time.perf_counter()
        with h5py.File(folder / "hooks.h5", "w") as file:
            for step in plan_steps(n_prompt, n_new):
                seen = capture.step(fed)
                for key, array in seen.items():
                    file.create_dataset(f"{step.index}/{key.path}", data=array)
                fed = [int(seen[Key(None, "logits")][-1].argmax())]
                if step.phase == "prefill" and n_new > 1:
                    start = time.perf_counter()
        return time.perf_counter() - start

    rows = []
    for what, prompt, new in ((f"prefill of {PREFILL}", PREFILL, 1), (f"decode of {DECODE}", 64, DECODE + 1)):
        ours, other = best(
            repeat,
            lambda p=prompt, n=new: run.recorded(p, n, NO_SOFTMAX_STATE),
            lambda p=prompt, n=new: hooked(p, n),
        )
        name = f"{what} tokens: ours / transformers eager, hooks and HDF5"
        rows.append(row(name, ours, other, 0.5, bytes=run.path.stat().st_size))
    with Trace(run.path) as trace, h5py.File(folder / "hooks.h5") as hooks:
        names: list[str] = []
        hooks["0"].visititems(
            lambda name, item: names.append("/" + name) if isinstance(item, h5py.Dataset) else None
        )
        assert {key.path for key in trace.tensors} == set(names), "the two sides recorded different tensors"
    return rows


# ---- the report


def machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor())
    packages = [name for name in ("numpy", "h5py", "torch", "transformers") if find_spec(name)]
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "blas_threads": os.environ.get("OPENBLAS_NUM_THREADS", "all"),
        "load_before": round(os.getloadavg()[0], 1),  # of other work: far from 0, the ratios are rough
        "system": platform.platform(),
        "versions": {name: version(name) for name in packages},
        "date": date.today().isoformat(),
    }


def markdown(report: dict[str, Any]) -> str:
    about = report["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    lines = [
        "# What recording costs",
        "",
        f"SmolLM2-135M (Q4_1), float32, {about['cores']} cores ({about['cpu']}),",
        f"{versions}, {about['date']}; BLAS threads: {about['blas_threads']}; load average before: "
        f"{about['load_before']}.",
        f"Best of {report['repeat']} alternating runs; made by `python benchmarks/record.py`.",
        "",
        "| what | ours | other | ratio | goal | bytes |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for entry in report["rows"]:
        goal, verdict = entry["goal"], ""
        if goal is not None:
            verdict = f"≤ {goal} {'met' if entry['ratio'] <= goal else 'missed'}"
        lines.append(
            f"| {entry['what']} | {entry['ours_s']:.2f} s | {entry['other_s']:.2f} s | {entry['ratio']:.2f} "
            f"| {verdict} | {entry['bytes'] / 1e6:.0f} MB |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="write OUT.json and OUT.md")
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    about, model, rows = machine(), Model(resolve()), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = Run(model, folder)
        rows += against_nothing(run, folder, options.repeat)
        rows += against_plain_file(model, folder, options.repeat)
        if find_spec("transformers"):
            rows += against_transformers(run, folder, options.repeat)
    report = {"machine": about, "repeat": options.repeat, "rows": rows}
    print(markdown(report))
    if options.out:
        options.out.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
        options.out.with_suffix(".md").write_text(markdown(report))


if __name__ == "__main__":
    main()
