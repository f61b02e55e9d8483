"""NumPy `.npy`: a file, or a folder of them (array_files.py says how they are named)."""

import math
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy_format

from ..array_files import Entry, is_source, read_files
from ..dump import Dump
from ..errors import UserError
from ..importer import Options

FORMAT = "npy"
SUMMARY = "NumPy .npy, a file or a folder"

_HEADERS = {(1, 0): npy_format.read_array_header_1_0, (2, 0): npy_format.read_array_header_2_0}
# what reading a header that is none can raise; values are never unpickled
_DAMAGE = (
    *(ValueError, TypeError, EOFError, OverflowError, MemoryError, RecursionError, SyntaxError),
    tokenize.TokenError,
)


def sniff(path: Path, head: bytes) -> bool:
    return is_source(path, ".npy")


def read(path: Path, options: Options) -> Dump:
    return read_files(path, options, ".npy", entries)


def entries(path: Path) -> Iterator[Entry]:
    with path.open("rb") as file:
        layout = read_layout(file, path.stat().st_size, str(path))
    yield Entry("", layout.shape, layout.dtype, partial(_load, path, layout))


@dataclass(frozen=True)
class Layout:
    """How the array lies in a .npy file: `offset` bytes from its start, first axis fastest if `fortran`."""

    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool
    offset: int

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    def array(self, flat: np.ndarray) -> np.ndarray:
        return flat.reshape(self.shape[::-1]).T if self.fortran else flat.reshape(self.shape)


def read_layout(file: IO[bytes], size: int, where: str) -> Layout:
    """The layout of the array in `file` of `size` bytes; UserError where it does not hold one whole."""
    try:
        version = npy_format.read_magic(file)
        if version not in _HEADERS:
            raise ValueError(f"version {version} of the format")
        shape, fortran, dtype = _HEADERS[version](file)
    except _DAMAGE as error:
        raise UserError(f"{where} is no .npy file that can be read: {str(error).split(chr(10))[0]}") from None
    layout = Layout(shape, dtype, fortran, file.tell())
    # what holds Python objects is pickled; its type alone tells the caller to leave it out
    if min(shape, default=0) < 0 or (
        not dtype.hasobject and layout.count * dtype.itemsize > size - layout.offset
    ):
        raise UserError(f"{where} is cut short: it does not hold the array of shape {shape} that it names")
    return layout


def _load(path: Path, layout: Layout) -> np.ndarray:
    return layout.array(np.memmap(path, layout.dtype, "r", layout.offset, (layout.count,)))
