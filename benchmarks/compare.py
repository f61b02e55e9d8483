"""What comparing costs: against h5diff, a plain NumPy loop and merely reading, and how soon it starts.

    env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE python benchmarks/compare.py --out benchmarks/results/compare

Writes OUT.json and OUT.md.  All sides of a ratio run in turn; the best time of each counts, as whatever else
the machine does only ever adds.  h5diff comes with the system's hdf5-tools; without it its row says so.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from tensortrace.analyze.compare import compare
from tensortrace.tracer import trace
from tensortrace.tracer.architecture import build_graph
from tensortrace.tracer.format import Header, TensorSpec, plan_steps
from tensortrace.tracer.gguf import Model
from tensortrace.tracer.hub import resolve
from tensortrace.tracer.plan import tensor_specs
from tensortrace.tracer.trace import Trace
from tensortrace.tracer.writer import TraceWriter

Row = dict[str, Any]


# ---- two traces that differ by rounding everywhere


def specs(layers: int | None = None) -> list[TensorSpec]:
    """What a recording of everything SmolLM2-135M has holds, or of its first layers."""
    graph = build_graph(Model(resolve()))
    declared = tensor_specs(graph, graph.outputs, "float32")
    return [s for s in declared if layers is None or s.key.layer is None or s.key.layer < layers]


def write_pair(
    folder: Path, name: str, n_prompt: int, n_new: int, layers: int | None = None
) -> tuple[Path, Path]:
    """Two traces of one run, the second off by a relative 1e-7 of random sign."""
    declared, steps = specs(layers), plan_steps(n_prompt, n_new)
    paths = folder / f"{name}_a.h5", folder / f"{name}_b.h5"
    for path, error in zip(paths, (0.0, 1e-7)):
        rng, noise = np.random.default_rng(0), np.random.default_rng(1)
        pool = rng.standard_normal(1 << 22, np.float32)
        pool *= 1 + np.float32(error) * noise.standard_normal(len(pool), np.float32)
        with TraceWriter(path, Header("benchmark"), declared, steps) as writer:
            for step in steps:
                writer.write_tokens(step.start, range(step.start, step.kv_len))
                for spec in declared:
                    values = _values(pool, spec.shape(step.n_tokens, step.kv_len))
                    if spec.key.name == "scores":
                        future = np.arange(step.kv_len) > np.arange(step.start, step.kv_len)[:, None]
                        values = np.where(future, np.float32(-np.inf), values)
                    writer.write(step.index, spec.key, values)
                writer.end_step(step.index)
            writer.finish()
    return paths


def _values(pool: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The first numbers of the pool, repeated where it has not enough."""
    size = int(np.prod(shape))
    return (pool[:size] if size <= len(pool) else np.resize(pool, size)).reshape(shape)


# ---- what is measured


def timed(body: Callable[[], object]) -> float:
    start = time.perf_counter()
    body()
    return time.perf_counter() - start


def best(repeat: int, bodies: dict[str, Callable[[], object]]) -> dict[str, float]:
    """The least seconds of each body, run in turn."""
    times: dict[str, list[float]] = {name: [] for name in bodies}
    for _ in range(repeat):
        for name, body in bodies.items():
            times[name].append(timed(body))
    return {name: min(kept) for name, kept in times.items()}


def ours(a: Path, b: Path) -> None:
    trace.specs_of.cache_clear()  # as the first time
    with Trace(a) as first, Trace(b) as second:
        assert compare(first, second).exit_code == 0


def numpy_loop(a: Path, b: Path) -> None:
    """Dataset by dataset: load whole, convert to float64, compute the same figures."""
    with h5py.File(a) as first, h5py.File(b) as second:
        for path in _datasets(first):
            x, y = (file[path][()].astype(np.float64) for file in (first, second))
            used = np.isfinite(x) & np.isfinite(y)
            x, y = x[used], y[used]
            d = x - y
            dd, xx, yy, xy = (d * d).sum(), (x * x).sum(), (y * y).sum(), (x * y).sum()
            _ = np.sqrt(dd / yy), np.abs(d).max(initial=0), xy / np.sqrt(xx * yy), xy / yy


def read_h5py(a: Path, b: Path) -> None:
    """Every dataset of both files into memory, one after the other."""
    for path in (a, b):
        with h5py.File(path) as file:
            for name in _datasets(file):
                file[name][()]


def read_plain(a: Path, b: Path) -> None:
    """Both files' bytes into one buffer of 1 MB, over and over: the floor."""
    buffer = bytearray(1 << 20)
    for path in (a, b):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def _datasets(file: h5py.File) -> list[str]:
    found: list[str] = []
    file.visititems(
        lambda name, item: (
            found.append(name) if isinstance(item, h5py.Dataset) and item.dtype.kind == "f" else None
        )
    )
    return found


def h5diff(a: Path, b: Path) -> None:
    subprocess.run(["h5diff", "-q", "-d", "1e-3", a, b], capture_output=True)


def against_others(name: str, pair: tuple[Path, Path], repeat: int) -> list[Row]:
    size = sum(path.stat().st_size for path in pair)
    sides = {
        "a plain NumPy loop": (numpy_loop, 1 / 4),
        "h5diff -d": (h5diff, 1 / 10),
        "reading both with h5py": (read_h5py, 1.5),
        "reading both into one buffer": (read_plain, 1.5),
    }
    missing = shutil.which("h5diff") is None
    known = {side: body for side, (body, _) in sides.items() if not (missing and body is h5diff)}
    found = best(repeat, {"ours": lambda: ours(*pair), **{s: lambda f=f: f(*pair) for s, f in known.items()}})
    rows = []
    for side, (_, goal) in sides.items():
        what = f"{name}: compare / {side}"
        if side in found:
            rows.append(row(what, found["ours"], found[side], goal, bytes=size))
        else:
            rows.append({"what": what, "note": "h5diff is not installed (hdf5-tools)", "goal": goal})
    return rows


def row(what: str, our: float, other: float, goal: float | None, **more: Any) -> Row:
    print(f"{what}: {our:.3f} s / {other:.3f} s = {our / other:.2f}", flush=True)
    return {"what": what, "ours_s": our, "other_s": other, "ratio": our / other, "goal": goal, **more}


def peak_memory(pair: tuple[Path, Path]) -> float:
    """Peak resident memory of the whole command in MB, mapped file pages included.

    Asked of a small process in between: a child counts what its parent held when it was started.
    """
    code = (
        "import resource, subprocess, sys; "
        "subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, check=True); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    asked = [sys.executable, "-c", code, *command("compare", *pair)]
    return int(subprocess.run(asked, capture_output=True, check=True).stdout) / 1000


def command(*arguments: object) -> list[str]:
    return [str(Path(sys.executable).with_name("trace")), *map(str, arguments)]


def start_up(pair: tuple[Path, Path], repeat: int) -> list[Row]:
    def run(*arguments: str) -> Callable[[], object]:
        return lambda: subprocess.run(arguments, stdout=subprocess.DEVNULL, check=True)

    def starting(modules: str) -> Callable[[], object]:
        return run(sys.executable, "-c", f"import {modules}")

    bare = {"python -c pass": run(sys.executable, "-c", "pass")}
    cases = (
        ("trace --help", ("--help",), "rich.console, rich.table, typer", 0.35),
        (
            "compare of two small files",
            ("compare", *pair),
            "numpy, h5py, rich.console, rich.table, typer",
            0.8,
        ),
    )
    rows = []
    for what, arguments, modules, seconds in cases:
        sides = bare | {f"import {modules}": starting(modules)}
        found = best(repeat, {"ours": run(*command(*arguments)), **sides})
        rows += [row(f"{what} / {s}", found["ours"], found[s], None, goal_s=seconds) for s in sides]
    return rows


# ---- reporting


def write(out: Path, rows: list[Row], memory: list[Row]) -> None:
    machine = {
        "date": str(date.today()),
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "numpy": version("numpy"),
        "h5py": version("h5py"),
        "load": os.getloadavg()[0],
    }
    report = {"machine": machine, "rows": rows, "memory": memory}
    out.with_suffix(".json").write_text(json.dumps(report, indent=2) + "\n")
    lines = [
        "# Comparing two traces",
        "",
        ", ".join(f"{name} {value}" for name, value in machine.items()),
        "",
        "| what | ours, s | other, s | ratio | goal |",
        "|---|---|---|---|---|",
        *(_line(entry) for entry in rows),
        "",
        "| peak resident memory | MB | goal |",
        "|---|---|---|",
        *(f"| {entry['what']} | {entry['mb']:.0f} | ≤ 400 |" for entry in memory),
    ]
    out.with_suffix(".md").write_text("\n".join(lines) + "\n")


def _line(entry: Row) -> str:
    if "note" in entry:
        return f"| {entry['what']} | {entry['note']} | | | ≤ {entry['goal']:.2f} |"
    goal = f"≤ {entry['goal']:.2f}" if entry.get("goal") else ""
    goal = f"≤ {entry['goal_s']} s" if "goal_s" in entry else goal
    figures = f"{entry['ours_s']:.3f} | {entry['other_s']:.3f} | {entry['ratio']:.2f}"
    return f"| {entry['what']} | {figures} | {goal} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--prefill", type=int, default=448, help="tokens of the large prefill (1 GB)")
    parser.add_argument("--decode", type=int, default=500, help="decode steps of the long run (1 GB)")
    arguments = parser.parse_args()
    rows, memory = [], []
    with tempfile.TemporaryDirectory(dir=arguments.out.parent) as name:
        folder = Path(name)
        cases = {
            f"prefill of {arguments.prefill} tokens": (arguments.prefill, 1),
            f"{arguments.decode} decode steps": (16, arguments.decode + 1),
        }
        for case, (n_prompt, n_new) in cases.items():
            pair = write_pair(folder, "large", n_prompt, n_new)
            rows += against_others(case, pair, arguments.repeat)
            size = sum(path.stat().st_size for path in pair) / 1e9
            memory.append({"what": f"{case}, {size:.1f} GB", "mb": peak_memory(pair)})
        pair = write_pair(folder, "large", 2 * arguments.prefill, 1)
        size = sum(path.stat().st_size for path in pair) / 1e9
        memory.append(
            {"what": f"prefill of {2 * arguments.prefill} tokens, {size:.1f} GB", "mb": peak_memory(pair)}
        )
        rows += start_up(write_pair(folder, "small", 8, 3, layers=2), 2 * arguments.repeat)
    write(arguments.out, rows, memory)


if __name__ == "__main__":
    main()
