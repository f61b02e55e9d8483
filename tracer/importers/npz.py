"""NumPy `.npz`: a file, or a folder of them; the arrays' names are translated."""

import zipfile
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import psutil

from ..array_files import Entry, is_source, read_files
from ..dump import Dump
from ..errors import UserError
from ..importer import Options
from .npy import Layout, read_layout

FORMAT = "npz"
SUMMARY = "NumPy .npz, a file or a folder"

_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError, OSError)


def sniff(path: Path, head: bytes) -> bool:
    return is_source(path, ".npz")


def read(path: Path, options: Options) -> Dump:
    return read_files(path, options, ".npz", entries)


def entries(path: Path) -> Iterator[Entry]:
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if info.filename.endswith(".npy"):
                    yield _entry(path, archive, info)
    except _DAMAGE as error:
        raise UserError(f"{path} is no .npz file that can be read: {error}") from error


def _entry(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Entry:
    where = f"{path}:{info.filename}"
    if info.file_size > psutil.virtual_memory().available:
        raise UserError(f"{where} would take {info.file_size / 1e9:.1f} GB: more memory than there is")
    with archive.open(info) as file:
        layout = read_layout(file, info.file_size, where)
    name = info.filename.removesuffix(".npy")
    return Entry(name, layout.shape, layout.dtype, partial(_load, path, info, layout))


def _load(path: Path, info: zipfile.ZipInfo, layout: Layout) -> np.ndarray:
    try:
        with zipfile.ZipFile(path) as archive:
            values = archive.read(info)
        return layout.array(np.frombuffer(values, layout.dtype, layout.count, layout.offset))
    except _DAMAGE as error:
        raise UserError(f"{path}:{info.filename} is damaged: {error}") from error
