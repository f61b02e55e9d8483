"""What verifying costs: against recording the same run, and comparing with --model against comparing.

    env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE python benchmarks/verify.py --out benchmarks/results/verify

Writes OUT.json and OUT.md.  A prefill of SmolLM2-135M with everything recorded, scores included.  All sides
of a ratio are whole commands, run in turn; the best time of each counts, as whatever else the machine does
only ever adds.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np

TRACE = str(Path(sys.executable).with_name("trace"))
VOCABULARY = 49152  # SmolLM2's
GOALS = {"verify / record": 3.0, "compare --model / compare": 1.5}


def commands(folder: Path, tokens: int, model: str) -> dict[str, list[str]]:
    """Two recordings of one prompt that agree, and what is done with them."""
    ids = np.random.default_rng(0).integers(100, VOCABULARY, tokens)
    prompt = ["--tokens", ",".join(map(str, ids.tolist())), "-n", "1", "-q"]
    a, b = str(folder / "a.h5"), str(folder / "b.h5")
    return {
        "record": ["record", model, *prompt, "--engine", "cpu", "-o", a],
        "record the other": ["record", model, *prompt, "--engine", "cpu", "--softmax", "two-pass", "-o", b],
        "verify": ["verify", a, "--model", model, "-q"],
        "compare": ["compare", a, b, "-q"],
        "compare --model": ["compare", a, b, "--model", model, "-q"],
    }


def timed(arguments: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run([TRACE, *arguments], check=True)
    return time.perf_counter() - start


def best(repeat: int, bodies: dict[str, list[str]]) -> dict[str, float]:
    """The least seconds of each command, run in turn."""
    times: dict[str, list[float]] = {name: [] for name in bodies}
    for _ in range(repeat):
        for name, arguments in bodies.items():
            times[name].append(timed(arguments))
    return {name: min(kept) for name, kept in times.items()}


def peak_memory(arguments: list[str]) -> float:
    """Peak resident memory of a command in MB, mapped file pages included."""
    code = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    asked = [sys.executable, "-c", code, TRACE, *arguments]
    return int(subprocess.run(asked, capture_output=True, check=True).stdout) / 1000


def write(out: Path, tokens: int, seconds: dict[str, float], memory: dict[str, float], size: int) -> None:
    machine = {
        "date": str(date.today()),
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "numpy": version("numpy"),
        "load": os.getloadavg()[0],
    }
    ratios = {what: seconds[what.split(" / ")[0]] / seconds[what.split(" / ")[1]] for what in GOALS}
    report = {"machine": machine, "seconds": seconds, "ratios": ratios, "memory_mb": memory, "bytes": size}
    out.with_suffix(".json").write_text(json.dumps(report, indent=2) + "\n")
    lines = [
        "# Verifying a trace",
        "",
        ", ".join(f"{name} {value}" for name, value in machine.items()),
        "",
        f"SmolLM2-135M (Q4_1), a prefill of {tokens} tokens with everything recorded: {size / 1e9:.2f} GB.",
        "",
        "| command | s | peak memory, MB |",
        "|---|---|---|",
        *(f"| {name} | {value:.2f} | {memory.get(name, 0):.0f} |" for name, value in seconds.items()),
        "",
        "| ratio | measured | goal |",
        "|---|---|---|",
        *(f"| {what} | {ratio:.2f} | ≤ {GOALS[what]} |" for what, ratio in ratios.items()),
    ]
    out.with_suffix(".md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=512, help="length of the prefill")
    parser.add_argument("--model", default="smollm2-135m")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.out.parent) as name:
        bodies = commands(Path(name), arguments.tokens, arguments.model)
        seconds = best(arguments.repeat, bodies)
        memory = {what: peak_memory(asked) for what, asked in bodies.items()}
        write(arguments.out, arguments.tokens, seconds, memory, (Path(name) / "a.h5").stat().st_size)


if __name__ == "__main__":
    main()
