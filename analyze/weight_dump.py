"""Reading the weights that somebody dumped: the array formats that `trace import` knows, plain numbers."""

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import numpy as np

from ..tracer.array_files import Entry
from ..tracer.arrays import storable
from ..tracer.errors import UserError
from ..tracer.printed import numbers
from ..tracer.stream import read_stream

_READERS = {".npy": "npy", ".npz": "npz", ".safetensors": "safetensors", ".pt": "pt", ".pth": "pt"}
_RAW = {".f32": np.float32, ".bin": np.float32, ".f16": np.float16}


def read_dump(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Name and values of every array in `path`, a file or a folder; a file's only one is called as the file.

    `.npy`, `.npz`, `.safetensors`, `.pt`, `.ttr`; `.f32`, `.f16` and `.bin` (float32) are raw values;
    anything else is text: numbers with commas or blanks between them, such as the first of a weight.
    """
    if path.is_dir():
        for each in sorted(path.iterdir()):
            if each.is_file():
                yield from read_dump(each)
        return
    if not path.is_file():
        raise UserError(f"no such file or folder: {path}")
    if path.suffix in _READERS:
        yield from _arrays(path, _READERS[path.suffix])
    elif path.suffix == ".ttr":
        stream = read_stream(path)
        for tensor in stream.tensors:
            yield tensor.name, stream.load(tensor)
    elif path.suffix in _RAW:
        dtype = np.dtype(_RAW[path.suffix])
        yield path.stem, np.fromfile(path, dtype, path.stat().st_size // dtype.itemsize)
    else:
        text = path.read_text("utf-8", "replace").translate(str.maketrans("[](){};", "       "))
        yield path.stem, np.array(numbers(text))


def _arrays(path: Path, reader: str) -> Iterator[tuple[str, np.ndarray]]:
    module = import_module(f"...tracer.importers.{reader}", __name__)
    found: list[Entry] = list(module.entries(path))
    for entry in found:
        if 0 not in entry.shape:
            name = entry.name or path.stem
            yield name, storable(entry.load(), name)
