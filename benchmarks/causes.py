"""The fault zoo: how often the first faulty op and its cause are named, and how often rounding is called one.

    python benchmarks/causes.py --out benchmarks/results/causes [--quick] [--only own|foreign|healthy]
    python benchmarks/causes.py --out /tmp/cuda --only healthy --engine cuda  # on a machine with a GPU

Writes OUT.json and OUT.md.  *Own* faults (faults/own.py) are every case of every cause (`Cause.fires`) put
into our CPU engine by --inject: on models made for them, on SmolLM2, and on each architecture, there in one
of four places (first, middle, last, all layers) and of three phases (prefill, decode, both) in turn.
*Foreign* ones are put into transformers by patching its functions, modules and weights (faults/patching.py),
into PyTorch by patching its functions (faults/functions.py), and into llama.cpp by altered files and options
(faults/llama_cpp.py).  *Healthy* pairs (faults/healthy.py) differ in engine, precision, storage, softmax,
chunks and text, and nothing may be found in them.  What counts is what `trace compare --model` prints.  Needs
the `torch` and `llamacpp` extras but for `--only own`; `--engine cuda` needs CuPy alone.
"""

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from faults.healthy import DEFAULT, ENGINES, pairs
from faults.table import PARTS, markdown


def measure(part: str, quick: bool, engines: tuple[str, ...]) -> dict[str, Any]:
    """One part of the report."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        if part == "own":
            from faults.own import own

            found: Any = [asdict(result) for result in own(Path(folder), quick)]
        elif part == "foreign":
            from faults import functions, llama_cpp, patching

            foreign = (patching, functions, llama_cpp)
            found = [asdict(result) for zoo in foreign for result in zoo.faults(Path(folder), quick)]
        else:
            found = pairs(Path(folder), quick, engines)
    seconds = round(time.perf_counter() - began)
    return {"date": date.today().isoformat(), "seconds": seconds, "quick": quick, "found": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--quick", action="store_true", help="one case of each cause, few places and pairs")
    parser.add_argument("--only", choices=PARTS, help="the others stay as OUT.json has them")
    parser.add_argument("--engine", default=",".join(DEFAULT), help=f"of healthy pairs: {', '.join(ENGINES)}")
    options = parser.parse_args()
    file = options.out.with_suffix(".json")
    report = json.loads(file.read_text()) if options.only and file.exists() else {}
    for part in [options.only] if options.only else PARTS:
        report[part] = measure(part, options.quick, tuple(options.engine.split(",")))
    file.write_text(json.dumps(report, indent=1) + "\n")
    options.out.with_suffix(".md").write_text(markdown(report))
    print(markdown(report))


if __name__ == "__main__":
    main()
