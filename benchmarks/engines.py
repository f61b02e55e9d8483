"""Our CPU engine beside llama.cpp, both recording the same tensors, and what capturing costs llama.cpp.

    env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE python benchmarks/engines.py --out benchmarks/results/engines

Writes OUT.json and OUT.md.  Both sides of every ratio run in turn, in one process; the best time of each
counts, as whatever else the machine does only ever adds.  llama.cpp runs as it comes: Q4_1 weights with
activations rounded to 8 bits.  Needs the `llamacpp` extra.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from record import Row, best, machine, row
from tensortrace.tracer.architecture import build_graph
from tensortrace.tracer.engines import cpu, llama_cpp
from tensortrace.tracer.format import Header, Step, plan_steps
from tensortrace.tracer.gguf import Model
from tensortrace.tracer.hub import resolve
from tensortrace.tracer.names import Key
from tensortrace.tracer.record import Engine, Request, record
from tensortrace.tracer.selection import Selection

PREFILL, DECODE, BEFORE_DECODE = 512, 64, 64
Body = Callable[[], float]


class Run:
    """Runs SmolLM2 on random ids, greedily: a long prefill, or (`decode`) a short one and decode steps.

    A prefill counts up to the closed file, decode steps from the first one on.
    """

    def __init__(self, engine: Engine, path: Path, tensors: str):
        self.engine, self.path, self.selection = engine, path, Selection(tensors=tensors)
        self.ids = np.random.default_rng(0).integers(100, 40_000, PREFILL).tolist()

    def recorded(self, decode: bool) -> float:
        self.path.unlink(missing_ok=True)
        prompt, new = (BEFORE_DECODE, DECODE + 1) if decode else (PREFILL, 1)
        request = Request(self.ids[:prompt], n_new=new, selection=self.selection)
        began = [time.perf_counter()]

        def stepped(step: Step) -> None:
            if decode and step.phase == "prefill":
                began.append(time.perf_counter())

        record(self.engine, request, self.path, Header(engine=""), on_step=stepped)
        return time.perf_counter() - began[-1]

    def captured(self, decode: bool) -> float:
        """Every tensor is copied out and dropped; no file."""
        return self._steps(self.selection.keys(self.engine.available()), decode)

    def plain(self, decode: bool) -> float:
        return self._steps([], decode)

    def _steps(self, wanted: list[Key], decode: bool) -> float:
        prompt, new = (BEFORE_DECODE, DECODE + 1) if decode else (PREFILL, 1)
        steps, ids = plan_steps(prompt, new), self.ids[:prompt]
        began = time.perf_counter()
        stepper = self.engine.start(wanted, steps[-1].kv_len)
        for step in steps:
            logits = stepper.step(step, np.asarray(ids[step.start : step.kv_len]), lambda key, array: None)
            ids.append(int(logits[-1].argmax()))
            if decode and step.phase == "prefill":
                began = time.perf_counter()
        return time.perf_counter() - began


def measure(model: Model, folder: Path, repeat: int) -> list[Row]:
    theirs = llama_cpp.Engine(None, model)
    tensors = ",".join(dict.fromkeys(key.name for key in theirs.available()))
    graph = build_graph(model)
    us = Run(cpu.Engine(graph, model), folder / "ours.h5", tensors)
    them = Run(theirs, folder / "llama.h5", tensors)
    us.plain(decode=True)  # dequantises the weights
    rows = []
    for decode, goals in ((False, (0.7, 2.0)), (True, (1.0, None))):
        what = f"decode of {DECODE} tokens" if decode else f"prefill of {PREFILL} tokens"
        bodies: list[Body] = [
            lambda d=decode: us.recorded(d),
            lambda d=decode: them.recorded(d),
            lambda d=decode: them.captured(d),
            lambda d=decode: them.plain(d),
        ]
        ours, recorded, captured, plain = best(repeat, *bodies)
        rows += [
            row(f"{what}, recorded: ours / llama.cpp", ours, recorded, goals[0]),
            row(f"{what}: llama.cpp recorded / uncaptured", recorded, plain, goals[1]),
            row(f"{what}: llama.cpp captured without a file / uncaptured", captured, plain, None),
        ]
    return rows


def markdown(report: dict[str, Any]) -> str:
    about = report["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    lines = [
        "# Engines side by side",
        "",
        f"SmolLM2-135M (Q4_1), every tensor but softmax tiles, {about['cores']} cores ({about['cpu']}), "
        f"{versions}, {about['date']}.",
        f"Best of {report['repeat']} alternating runs; made by `python benchmarks/engines.py`.",
        "",
        "| what | one | other | ratio | goal |",
        "|---|--:|--:|--:|--:|",
    ]
    for entry in report["rows"]:
        goal = entry["goal"]
        verdict = "" if goal is None else f"≤ {goal} {'met' if entry['ratio'] <= goal else 'missed'}"
        times = f"{entry['ours_s']:.2f} s | {entry['other_s']:.2f} s"
        lines.append(f"| {entry['what']} | {times} | {entry['ratio']:.2f} | {verdict} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="write OUT.json and OUT.md")
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    about = machine()
    about["versions"] |= {"llama-cpp-python": version("llama-cpp-python")}
    with tempfile.TemporaryDirectory() as name:
        report = {
            "machine": about,
            "repeat": options.repeat,
            "rows": measure(Model(resolve()), Path(name), options.repeat),
        }
    print(markdown(report))
    if options.out:
        options.out.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
        options.out.with_suffix(".md").write_text(markdown(report))


if __name__ == "__main__":
    main()
