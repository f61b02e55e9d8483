"""Raw binary files with a manifest that says what they are: `manifest.json` or `.toml`, or any name given.

engine = "mine"                       # as in array_files.py: tokens, heads, kv_heads, tile
dtype = "float32"                     # for tensors that do not say
[[tensor]]
file = "q_0.bin"                      # below the manifest's folder
name = "q"
layer = 0                             # left out: belongs to no layer
step = 0                              # left out: 0
shape = [10, 9, 64]
axes = ["token", "head", "dim"]       # left out: those of the name
offset = 0                            # bytes into the file
order = "C"                           # "F": the first axis is the fastest, as in ggml's ne
[[step]]
index = 0
tokens = [1, 2, 3]
start = 0
"""

import json
import math
import tomllib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..array_files import KINDS, check_facts, is_axes
from ..axes import Heads
from ..dump import Dump, Piece, StepInfo
from ..errors import UserError
from ..format import numpy_dtype
from ..importer import Options, header_of
from ..translate import translate

FORMAT = "manifest"
SUMMARY = "raw binary files with a manifest.json or manifest.toml"

_NAMES = ("manifest.json", "manifest.toml")


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 48


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and all(type(token) is int and abs(token) < 1 << 31 for token in value)


_TENSOR = {
    "file": lambda value: isinstance(value, str),
    "name": lambda value: isinstance(value, str) and bool(value),
    "layer": _is_count,
    "step": _is_count,
    "dtype": lambda value: isinstance(value, str),
    "shape": lambda value: isinstance(value, list) and all(map(_is_count, value)),
    "axes": is_axes,
    "offset": _is_count,
    "order": lambda value: value in ("C", "F"),
}
_STEP = {"index": _is_count, "tokens": _is_ids, "start": _is_count}
_KINDS = {
    **{name: KINDS[name] for name in ("engine", "tokens", "heads", "kv_heads", "tile")},
    "dtype": _TENSOR["dtype"],
    "tensor": lambda value: isinstance(value, list) and all(isinstance(entry, dict) for entry in value),
    "step": lambda value: isinstance(value, list) and all(isinstance(entry, dict) for entry in value),
}


def sniff(path: Path, head: bytes) -> bool:
    if path.is_dir():
        return any((path / name).is_file() for name in _NAMES)
    return path.suffix in (".json", ".toml") and b"tensor" in head and b"file" in head


def read(path: Path, options: Options) -> Dump:
    if path.is_dir():
        path = next((path / name for name in _NAMES if (path / name).is_file()), path / _NAMES[0])
    facts = _facts(path)
    tensors, steps = facts.get("tensor", []), facts.get("step", [])
    for entry in tensors:
        check_facts(entry, path, _TENSOR)
    for entry in steps:
        check_facts(entry, path, _STEP)
    return Dump(
        [_piece(path, entry, facts.get("dtype", "float32")) for entry in tensors],
        {entry.get("index", number): _step(entry) for number, entry in enumerate(steps)},
        header_of(facts, "dump"),
        Heads(facts.get("heads"), facts.get("kv_heads")),
        facts.get("tile"),
        tokens=tuple(facts.get("tokens", ())),
    )


def _step(entry: dict[str, Any]) -> StepInfo:
    return StepInfo(start=entry.get("start"), tokens=tuple(entry.get("tokens", ())))


def _facts(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        facts = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no manifest: {error}") from None
    if not isinstance(facts, dict):
        raise UserError(f"{path} is no manifest: it is no table with entries such as `tensor`")
    check_facts(facts, path, _KINDS)
    return facts


def _piece(manifest: Path, entry: dict[str, Any], default: str) -> Piece:
    missing = [name for name in ("file", "name", "shape") if name not in entry]
    if missing:
        raise UserError(f"{manifest}: a tensor lacks {', '.join(missing)}: {str(entry)[:80]}")
    file = _inside(manifest, entry["file"])
    try:
        dtype = numpy_dtype(entry.get("dtype", default))
    except ValueError as error:
        raise UserError(f"{manifest}: {entry['file']}: {error}") from None
    shape, offset = tuple(entry["shape"]), entry.get("offset", 0)
    size = file.stat().st_size if file.is_file() else -1
    if offset + math.prod(shape) * dtype.itemsize > size:
        have = "does not exist" if size < 0 else f"has {size} bytes"
        raise UserError(f"{file} {have}; the manifest says {dtype.name} {list(shape)} at byte {offset}")
    target = translate(entry["name"], entry.get("layer"))
    axes = tuple(entry.get("axes", target.axes))
    if entry.get("order") == "F":
        shape = shape[::-1]
        axes = axes[::-1] if "axes" in entry else axes
    load = partial(_load, file, dtype, offset, shape)
    return Piece(entry.get("step", 0), target.key, shape, dtype.name, load, axes, entry["file"])


def _inside(manifest: Path, name: str) -> Path:
    """The file `name` below the manifest's folder; UserError for one outside it."""
    root = manifest.parent.resolve()
    try:
        file = (root / name).resolve()
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{manifest} names the file {name[:80]!r}: {error}") from None
    if not file.is_relative_to(root):
        raise UserError(f"{manifest} names {name!r}, which is outside its folder")
    return file


def _load(file: Path, dtype: np.dtype, offset: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.memmap(file, dtype, "r", offset, (math.prod(shape),)).reshape(shape)
