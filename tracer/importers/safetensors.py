"""`.safetensors`: a file, or a folder of them; the tensors' names are translated.

The format is eight bytes of length, JSON, and values (https://github.com/huggingface/safetensors#format).
"""

import json
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..array_files import Entry, is_source, read_files
from ..dump import Dump
from ..errors import UserError
from ..format import numpy_dtype
from ..importer import Options

FORMAT = "safetensors"
SUMMARY = "safetensors, a file or a folder"

_TYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "BOOL": "uint8",
    **{
        f"{kind}{bits}": f"{name}{bits}"
        for kind, name in (("I", "int"), ("U", "uint"))
        for bits in (8, 16, 32, 64)
    },
}
_MAX_HEADER = 100_000_000  # bytes, as the reference implementation has it


def sniff(path: Path, head: bytes) -> bool:
    return is_source(path, ".safetensors")


def read(path: Path, options: Options) -> Dump:
    return read_files(path, options, ".safetensors", entries)


def entries(path: Path) -> Iterator[Entry]:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER):
            raise UserError(f"{path} is no safetensors file: its header would be {length} bytes long")
        text = file.read(length)
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no safetensors file: {error}") from None
    if not isinstance(header, dict):
        raise UserError(f"{path} is no safetensors file: its header is no table of tensors")
    for name, facts in header.items():
        if name != "__metadata__":
            yield _entry(path, name, facts, 8 + length, size)


def _entry(path: Path, name: str, facts: Any, start: int, size: int) -> Entry:
    try:
        dtype, shape, (begin, end) = facts["dtype"], tuple(facts["shape"]), facts["data_offsets"]
        kind = numpy_dtype(_TYPES[dtype])
        whole = all(type(number) is int and number >= 0 for number in (*shape, begin, end))
        fits = whole and begin <= end <= size - start and end - begin == math.prod(shape) * kind.itemsize
    except (KeyError, TypeError, ValueError):
        fits = False
    if not fits:
        raise UserError(f"{path}: the entry of {name[:80]!r} is damaged: {str(facts)[:120]}")
    return Entry(name, shape, kind, partial(_load, path, kind, start + begin, shape))


def _load(path: Path, dtype: np.dtype, offset: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.memmap(path, dtype, "r", offset, (math.prod(shape),)).reshape(shape)
