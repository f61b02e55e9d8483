"""Packing arrays into blocks, and writing rows of many blocks with their checksums.

Compiled (`rows.c`) where the package was built with a C compiler: all arrays or rows are then one call, and
writing leaves the interpreter to the engine that runs meanwhile.
"""

import errno
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import xxhash

from ..kernels.native import compiled

AXES = 8  # of an array that `pack` takes
IOV_MAX = 1024  # pieces of one write: Linux takes no more
CHUNK = 1 << 20  # bytes written at a time: the checksum has brought them into the core's cache

LIBRARY: Any = compiled("_rows", __package__)


def pack(arrays: list[np.ndarray], spots: np.ndarray, sizes: np.ndarray, block: np.ndarray) -> Sequence[int]:
    """Copy arrays into a block of bytes; gives the numbers of those that are left to NumPy.

    `spots` int64 [array, 4 + AXES]: the byte where the array's room begins, its type as `ord` of NumPy's
    character for it, the byte that fills what it leaves free, its axes, and the room along each; `sizes`
    int64 [array, AXES] is what it takes of that.  Left over is what has another type or other sizes.
    """
    return range(len(arrays)) if LIBRARY is None else LIBRARY.pack(arrays, spots, sizes, block)


def write_row(fd: int, offset: int, row: memoryview) -> int:
    """Write bytes; gives their XXH3-64.  OSError where the disk is full."""
    if LIBRARY is not None:
        return LIBRARY.write_row(fd, offset, row)
    digest = xxhash.xxh3_64()
    for first in range(0, len(row), CHUNK):
        chunk = row[first : first + CHUNK]
        digest.update(chunk)
        write_all(fd, [chunk], offset + first)
    return digest.intdigest()


def write_columns(fd: int, columns: np.ndarray, blocks: Sequence[np.ndarray]) -> np.ndarray:
    """Write what blocks of bytes hold of several tensors; gives the XXH3-64s, uint64 [block, tensor].

    `columns` int64 [tensor, 3]: where a tensor's rows begin in every block, the bytes of a row, and where in
    the file the first block's lies, the others' behind it.
    """
    sums = np.empty((len(blocks), len(columns)), np.uint64)
    if LIBRARY is not None:
        LIBRARY.write_columns(fd, columns, list(blocks), sums)
        return sums
    views = [memoryview(block) for block in blocks]
    for number, (begin, size, offset) in enumerate(columns.tolist()):
        rows = [view[begin : begin + size] for view in views]
        write_all(fd, rows, offset)
        sums[:, number] = [*map(xxhash.xxh3_64_intdigest, rows)]
    return sums


def write_all(fd: int, rows: Sequence[memoryview], offset: int) -> None:
    """Write rows side by side from `offset` on; OSError where the disk is full."""
    size = sum(map(len, rows))
    while size:
        written = os.pwritev(fd, rows[:IOV_MAX], offset)
        if written == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        offset, size = offset + written, size - written
        rows = _end(rows, size)


def _end(rows: Sequence[memoryview], size: int) -> list[memoryview]:
    """The last `size` bytes of `rows`."""
    kept: list[memoryview] = []
    for row in reversed(rows if size else ()):
        if not size:
            break
        kept.append(row[-size:])
        size -= len(kept[-1])
    return kept[::-1]
