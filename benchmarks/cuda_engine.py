"""Speed of the CUDA engine beside the hardware's floor and transformers with hooks, in one run.

    python benchmarks/cuda_engine.py MODEL.gguf --out benchmarks/results/cuda

Writes OUT.json and OUT.md.  Needs an NVIDIA GPU, a cuda extra and the torch extra.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from tensortrace.tracer.architecture import build_graph
from tensortrace.tracer.engines.cuda import Engine
from tensortrace.tracer.format import Header, plan_steps
from tensortrace.tracer.gguf import Model
from tensortrace.tracer.names import Key
from tensortrace.tracer.record import Request, record
from tensortrace.tracer.selection import Selection

DECODE = 512  # new tokens
RECORDINGS = 6  # of which the quickest counts
CAPTURED = 4  # new tokens after which the decode step is a captured graph
NO_SCORES = "embd,attn_norm,q,k,v,*_rope,m,l,attn,attn_out,resid*,ffn*,gate,up,act,final_norm,logits"


class Discard:
    """A sink that gives every buffer straight back."""

    def __call__(self, key: Key, array: Any) -> None:
        array.release()

    def packed(self, block: Any, places: Any) -> None:
        block.release()


def seconds(body: Callable[[], Any], repeat: int = 5) -> float:
    """Median wall time of `body`, after one call that is not counted."""
    body()
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        body()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def least(body: Callable[[], Any], repeat: int = 6) -> float:
    """Least wall time of `body`."""
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        body()
        times.append(time.perf_counter() - start)
    return min(times)


# ---- the floor

CHUNK = 1 << 20  # bytes of a write to a plain file


def floors(folder: Path) -> dict[str, float]:
    """GB/s of a copy inside the GPU (read plus written), of pinned copies to the host, of file writes."""
    import cupy

    size = 1 << 30
    a, b = cupy.zeros(size, np.uint8), cupy.empty(size, np.uint8)

    def inside() -> None:
        cupy.copyto(b, a)
        cupy.cuda.Device().synchronize()

    host = np.frombuffer(cupy.cuda.alloc_pinned_memory(size), np.uint8, size)

    def to_host() -> None:
        cupy.cuda.runtime.memcpy(host.ctypes.data, a.data.ptr, size, cupy.cuda.runtime.memcpyDeviceToHost)

    path = folder / "floor.bin"

    def to_file() -> None:
        with path.open("wb", buffering=0) as file:
            for first in range(0, size, CHUNK):
                file.write(memoryview(host)[first : first + CHUNK])

    rates = {
        "gpu_copy": 2 * size / seconds(inside) / 1e9,
        "pinned_copy": size / seconds(to_host) / 1e9,
        "file_write": size / least(to_file) / 1e9,
    }
    path.unlink()
    return rates


# ---- this engine


def decode_step(engine: Engine, wanted: list[Key], ids: list[int]) -> float:
    """Seconds of a decode step without a trace file: the median over DECODE steps."""
    steps = plan_steps(len(ids), DECODE)
    stepper, sink, times = engine.start(wanted, steps[-1].kv_len), Discard(), []
    fed = np.asarray(ids)
    for step in steps:
        start = time.perf_counter()
        logits = stepper.step(step, fed, sink)
        times.append(time.perf_counter() - start)
        fed = np.array([int(logits[-1].argmax())])
    return statistics.median(times[3:])


def recorded(
    engine: Engine, ids: list[int], path: Path, selection: Selection, n_new: int
) -> tuple[float, int]:
    """The least seconds of a whole recording, and the bytes of its trace: what else the machine does (fresh
    memory for the file's pages, above all) only ever adds."""
    request = Request(ids, n_new=n_new, selection=selection)
    header = Header(engine="")
    times = []
    for _ in range(RECORDINGS):
        start = time.perf_counter()
        record(engine, request, path, header)
        times.append(time.perf_counter() - start)
        size = path.stat().st_size
        path.unlink()  # replacing it would be timed, too
    return min(times), size


def decode_recorded(engine: Engine, ids: list[int], path: Path) -> tuple[float, int]:
    """Seconds a decode step with everything recorded, closing the file included; bytes a step.

    Both runs pay for the capture of the graph, in the second decode step.
    """
    long, long_bytes = recorded(engine, ids, path, Selection(), DECODE)
    short, short_bytes = recorded(engine, ids, path, Selection(), CAPTURED)
    return (long - short) / (DECODE - CAPTURED), (long_bytes - short_bytes) // (DECODE - CAPTURED)


def prefill(engine: Engine, wanted: list[Key], ids: list[int]) -> float:
    (step,) = plan_steps(len(ids), 1)
    return seconds(lambda: engine.start(wanted, len(ids)).step(step, np.asarray(ids), Discard()), 3)


def ours(model: Model, folder: Path, lengths: list[int]) -> dict[str, Any]:
    engine = Engine(build_graph(model), model)
    random = np.random.default_rng(0)
    prompt = random.integers(100, 40000, 32).tolist()
    step, step_bytes = decode_recorded(engine, prompt, folder / "decode.h5")
    made: dict[str, Any] = {
        "decode_untraced_s": decode_step(engine, [], prompt),
        "decode_traced_s": step,
        "decode_bytes": step_bytes,
    }
    for length in lengths:
        ids = random.integers(100, 40000, length).tolist()
        made[f"prefill{length}_untraced_s"] = prefill(engine, [], ids)
        for label, selection in choices(length):
            took, size = recorded(engine, ids, folder / "prefill.h5", selection, 1)
            made[f"prefill{length}_{label}_s"], made[f"prefill{length}_{label}_bytes"] = took, size
    return made


def choices(length: int) -> list[tuple[str, Selection]]:
    """What is recorded of a prompt: all but scores and probs; and with them, of four layers where huge."""
    with_scores = Selection() if length <= 1024 else Selection(layers="0-3")
    return [("no_scores", Selection(tensors=NO_SCORES)), ("scores", with_scores)]


# ---- the peer: transformers, eager, forward hooks that write HDF5


class Hooked:
    """transformers on the GPU in float32; `path` records every module's output and the attention weights."""

    def __init__(self, gguf: Path):
        import torch
        from transformers import AutoModelForCausalLM

        torch.backends.cuda.matmul.allow_tf32 = False
        self.torch = torch
        self.model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32, attn_implementation="eager"
        )
        self.model = self.model.cuda().eval()

    def generate(self, ids: list[int], n_new: int, path: Path | None) -> list[float]:
        """Greedy decoding; the seconds of each step."""
        import h5py

        file = None if path is None else h5py.File(path, "w")
        store: list[tuple[str, Any]] = []
        hooks = [] if file is None else self._hooks(store)
        fed, cache, times = self.torch.tensor([ids], device="cuda"), None, []
        with self.torch.no_grad():
            for index in range(n_new):
                start = time.perf_counter()
                out = self.model(
                    fed, past_key_values=cache, use_cache=True, output_attentions=file is not None
                )
                cache, fed = out.past_key_values, out.logits[:, -1:].argmax(-1)
                fed.item()
                if file is not None:
                    for name, tensor in store:
                        file[f"{index}/{name}"] = tensor.cpu().numpy()
                    store.clear()
                times.append(time.perf_counter() - start)
        for hook in hooks:
            hook.remove()
        if file is not None:
            file.close()
        return times

    def _hooks(self, store: list[tuple[str, Any]]) -> list[Any]:
        def keep(name: str) -> Callable[..., None]:
            def hook(module: Any, inputs: Any, output: Any) -> None:
                parts = output if isinstance(output, tuple) else (output,)
                tensors = [part for part in parts if isinstance(part, self.torch.Tensor)]
                store.extend((f"{name}/{i}", tensor) for i, tensor in enumerate(tensors))

            return hook

        return [m.register_forward_hook(keep(n)) for n, m in self.model.named_modules() if n.count(".") >= 2]


def peer(gguf: Path, folder: Path, n_new: int = 40) -> dict[str, float]:
    hooked, ids = Hooked(gguf), np.random.default_rng(0).integers(100, 40000, 32).tolist()
    made = {}
    for label, path in (("untraced", None), ("hooked", folder / "peer.h5")):
        hooked.generate(ids, 4, path)
        made[f"peer_decode_{label}_s"] = statistics.median(hooked.generate(ids, n_new, path)[3:])
    ids512 = np.random.default_rng(1).integers(100, 40000, 512).tolist()
    for label, path in (("untraced", None), ("hooked", folder / "peer.h5")):
        made[f"peer_prefill512_{label}_s"] = seconds(lambda path=path: hooked.generate(ids512, 1, path), 3)
    return made


# ---- the report


def report(figures: dict[str, Any], weight_bytes: int) -> str:
    f = figures
    floor = weight_bytes / (f["gpu_copy"] / 2 * 1e9)
    lines = [
        f"# CUDA engine on {f['device']}",
        "",
        f"{f['date']}, commit {f['commit']}, {f['versions']}; float32, SmolLM2-135M Q4_1.",
        "",
        f"Floor: GPU copy {f['gpu_copy']:.0f} GB/s (read + write), pinned copy {f['pinned_copy']:.1f} GB/s, "
        f"file write {f['file_write']:.2f} GB/s.",
        "",
        "| decode, a step | ms | tokens/s | against |",
        "|---|---|---|---|",
        row(
            "untraced",
            f["decode_untraced_s"],
            f"{f['decode_untraced_s'] / floor:.0f}x reading the weights once",
        ),
        row(
            "everything traced",
            f["decode_traced_s"],
            f"{f['decode_traced_s'] / f['decode_untraced_s']:.2f}x untraced, "
            + against_floor(f, f["decode_traced_s"], f["decode_untraced_s"], f["decode_bytes"]),
        ),
        row("transformers, untraced", f["peer_decode_untraced_s"], ratio(f, "untraced")),
        row("transformers, hooks into HDF5", f["peer_decode_hooked_s"], ratio(f, "hooked")),
        "",
        "The floor is the slowest of computing, copying to the host and writing the file.",
        "",
        "| prefill | s | trace | against |",
        "|---|---|---|---|",
    ]
    for name in f:
        if name.startswith("prefill") and name.endswith("scores_s"):
            lines.append(prefill_row(f, name.removesuffix("_s")))
    lines.append(f"| transformers 512, untraced | {f['peer_prefill512_untraced_s']:.3f} | | |")
    lines.append(f"| transformers 512, hooks into HDF5 | {f['peer_prefill512_hooked_s']:.3f} | | |")
    return "\n".join(lines) + "\n"


def row(label: str, took: float, against: str) -> str:
    return f"| {label} | {took * 1e3:.2f} | {1 / took:.0f} | {against} |"


def ratio(f: dict[str, Any], label: str) -> str:
    return f"traced decode is {f[f'peer_decode_{label}_s'] / f['decode_traced_s']:.1f}x as fast"


def prefill_row(f: dict[str, Any], name: str) -> str:
    length = name.removeprefix("prefill").split("_")[0]
    size, took = f[f"{name}_bytes"], f[f"{name}_s"]
    against = against_floor(f, took, f[f"prefill{length}_untraced_s"], size)
    label = name.removeprefix("prefill").replace("_", ", ", 1)
    return f"| {label} | {took:.3f} | {size / 1e9:.2f} GB | {against} |"


def against_floor(f: dict[str, Any], took: float, untraced: float, size: int) -> str:
    """`took` over the slowest of what runs side by side: computing, copying and writing `size` bytes."""
    parts = {
        "compute": untraced,
        "copy": size / f["pinned_copy"] / 1e9,
        "file": size / f["file_write"] / 1e9,
    }
    slowest = max(parts, key=lambda part: parts[part])
    return f"{took / parts[slowest]:.2f}x the floor ({slowest}: {parts[slowest] * 1e3:.2f} ms)"


def commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return os.environ.get("TENSORTRACE_COMMIT") or done.stdout.strip() or "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--lengths", default="512,4096")
    parser.add_argument("--folder", type=Path, default=None, help="where the traces go (default: temporary)")
    options = parser.parse_args()

    import cupy
    import torch
    import transformers

    model = Model(options.model)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        figures = {
            "date": date.today().isoformat(),
            "commit": commit(),
            "device": cupy.cuda.runtime.getDeviceProperties(0)["name"].decode(),
            "versions": ", ".join(f"{m.__name__} {m.__version__}" for m in (cupy, torch, transformers)),
            **floors(folder),
            **ours(model, folder, [int(n) for n in options.lengths.split(",")]),
            **peer(options.model, folder),
        }
    weights = {weight for op in build_graph(model).ops for weight in op.weights}
    text = report(figures, sum(model.raw(weight).nbytes for weight in weights))
    options.out.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n")
    options.out.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
