"""Coverage-guided fuzzing of the importers with atheris; not part of the ordinary tests.

    pip install atheris
    python tests/fuzz_importers.py llama.cpp 600        # a target, seconds

Whatever bytes a file has: a trace whose checksums hold, or a UserError of one line and no file.  The inputs
that taught something are kept in the folder that is printed; a crash is written to the current one.
"""

import io
import json
import struct
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["tensortrace"]):
    import numpy as np
    from tensortrace.tracer.errors import UserError
    from tensortrace.tracer.importer import Options, import_dump, importers
    from tensortrace.tracer.stream import StreamWriter, checksum
    from tensortrace.tracer.trace import Trace

    importers()  # imported when they are needed, which would be too late

LOGS = Path(__file__).parent / "golden" / "logs"
REGEX = r"(?P<name>\w+)\[(?P<layer>\d+)\]( head (?P<head>\d+))?( token (?P<token>\d+))?: (?P<values>.*)"
Q = np.arange(64, dtype=np.float32).reshape(2, 4, 8)
LayOut = Callable[[Path, bytes], tuple[Path, Options]]


# ---- what the inputs start from


def npy(array: np.ndarray = Q) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def npys() -> list[bytes]:
    return [npy(), npy(np.asfortranarray(Q)), npy(np.ones(3, np.int8))]


def npzs() -> list[bytes]:
    buffers = io.BytesIO(), io.BytesIO()
    for buffer, save in zip(buffers, (np.savez, np.savez_compressed), strict=True):
        save(buffer, q=Q, embd=np.ones((2, 4), np.float16))
    return [buffer.getvalue() for buffer in buffers]


def safetensors() -> list[bytes]:
    entry = {"dtype": "F32", "shape": [2, 4, 8], "data_offsets": [0, 256]}
    header = json.dumps({"__metadata__": {"format": "pt"}, "layers.0.q": entry}).encode()
    return [len(header).to_bytes(8, "little") + header + Q.tobytes()]


def pts() -> list[bytes]:
    import torch

    buffers = io.BytesIO(), io.BytesIO()
    for zipped, buffer in enumerate(buffers):
        content = {"layers.0.q": torch.ones(2, 4, 8)}
        torch.save(content, buffer, _use_new_zipfile_serialization=bool(zipped))
    return [buffer.getvalue() for buffer in buffers]


def sglang_file() -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.save({"value": torch.ones(2, 4, 8), "meta": {"rank": 0}}, buffer)
    return buffer.getvalue()


def ttr() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.ttr"
        with StreamWriter(path, {"engine": "mine", "heads": 4, "tile": 2}) as stream:
            stream.step(0, [1, 2], 0)
            stream.tensor(0, "q", Q, layer=0, axes=("token", "head", "dim"))
            stream.tensor(0, "scores", np.ones((4, 2, 2)), layer=0)
        return [path.read_bytes()]


def logs() -> list[bytes]:
    echo = b"number of input tokens = 2\n  84\n  104\n"
    return [echo + b"\n".join(path.read_bytes().split(b"\n")[:40]) for path in sorted(LOGS.glob("*.log"))]


def manifests() -> list[bytes]:
    tensor = {"file": "a.bin", "name": "q", "layer": 0, "step": 0, "shape": [2, 4, 2], "dtype": "float32"}
    tensor |= {"axes": ["token", "head", "dim"], "offset": 0, "order": "F"}
    facts = {"engine": "mine", "heads": 4, "tensor": [tensor], "step": [{"tokens": [1, 2], "start": 0}]}
    return [json.dumps(facts).encode()]


def texts(*lines: str) -> Callable[[], list[bytes]]:
    return lambda: ["\n".join(lines).encode()]


# ---- how an input becomes a source


def file(name: str, **options: str) -> LayOut:
    """The source is a file called `name`."""

    def lay_out(folder: Path, data: bytes) -> tuple[Path, Options]:
        (folder / "a.bin").write_bytes(bytes(64))
        (folder / name).write_bytes(data)
        return folder / name, Options(**options)

    return lay_out


def stream(folder: Path, data: bytes) -> tuple[Path, Options]:
    """A stream whose checksums are put right: otherwise nothing else in it would ever be looked at."""
    changed, at = bytearray(data), 8
    while at + 24 <= len(changed):
        kind, length = bytes(changed[at : at + 4]), struct.unpack_from("<Q", changed, at + 8)[0]
        body = bytes(changed[at + 24 : at + 24 + length])
        struct.pack_into("<Q", changed, at + 16, checksum(kind, body))
        at += 24 + length
    return file("a.ttr", format="ttr")(folder, bytes(changed))


def files(parent: str, suffix: str, content: Callable[[], bytes], **options: str) -> LayOut:
    """The source is a folder; each line of the input is the name of a file in it."""
    written: list[bytes] = []

    def lay_out(folder: Path, data: bytes) -> tuple[Path, Options]:
        if not written:
            written.append(content())
        for line in data.decode("latin-1").split("\n")[:6]:
            name = "".join(c for c in line if c.isprintable() and c not in "/\0")[:100]
            path = folder / "dump" / parent / f"{name}{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(written[0])
        return folder / "dump", Options(**options)

    return lay_out


MSPROBE = texts(
    "Module.model.layers.0.self_attn.q_proj.Linear.forward.0.output.0",
    "Functional.linear.5.forward.output.0",
)
SGLANG = texts("step=0___rank=0___dump_index=1___name=q___layer_id=3", "step=1___name=embd")
NAMES = texts("q_0_1", "k_0_1", "mlp_2_0")
TARGETS: dict[str, tuple[Callable[[], list[bytes]], LayOut]] = {
    "ttr": (ttr, stream),
    "llama.cpp": (logs, file("a.log", format="llama.cpp")),
    "npy": (npys, file("q-0.npy", format="npy")),
    "npz": (npzs, file("a.npz", format="npz")),
    "safetensors": (safetensors, file("a.safetensors", format="safetensors")),
    "pt": (pts, file("a.pt", format="pt")),
    "manifest": (manifests, file("manifest.json", format="manifest")),
    "regex": (texts("q[0] head 1 token 2: 0.5 1 ... 2", "k[0] token 3: 1"), file("a.log", regex=REGEX)),
    "msprobe": (MSPROBE, files("step0/rank0/dump_tensor_data", ".npy", npy, format="msprobe")),
    "sglang": (SGLANG, files("x", ".pt", sglang_file, format="sglang")),
    "names": (NAMES, files("", ".npy", npy, pattern="{name}_{layer}_{step}.npy")),
}


def check(folder: Path, data: bytes, lay_out: LayOut) -> None:
    """One input: import it, and look at what came of it."""
    output = folder / "out" / "a.h5"
    output.parent.mkdir()
    source, options = lay_out(folder, data)
    before = {path for path in folder.rglob("*") if not path.is_relative_to(output.parent)}
    message = None
    try:
        import_dump(source, output, options)
    except UserError as error:
        message = str(error)
    after = {path for path in folder.rglob("*") if not path.is_relative_to(output.parent)}
    assert before == after, "a path outside the output"
    if message is None:
        assert list(output.parent.iterdir()) == [output]
        with Trace(output) as trace:
            assert not list(trace.damaged())
    else:
        assert message.strip(), "an error without a message"
        assert "\n" not in message, "an error of several lines"
        assert not list(output.parent.iterdir()), "an error, and a file"


def main(name: str, seconds: str = "60") -> None:
    seeds, lay_out = TARGETS[name]
    corpus = Path(tempfile.mkdtemp(prefix=f"fuzz-{name}-"))
    for number, seed in enumerate(seeds()):
        (corpus / f"seed{number}").write_bytes(seed)
    print(f"the corpus is in {corpus}", file=sys.stderr)
    memory = Path("/dev/shm")
    work = tempfile.mkdtemp(prefix="fuzz-work-", dir=memory if memory.is_dir() else None)

    def once(data: bytes) -> None:
        with tempfile.TemporaryDirectory(dir=work) as folder:
            check(Path(folder), data, lay_out)

    limits = [f"-max_total_time={seconds}", "-max_len=8192", "-timeout=30", "-rss_limit_mb=6000"]
    atheris.Setup([sys.argv[0], *limits, "-print_final_stats=1", str(corpus)], once)
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
