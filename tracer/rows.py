"""Writing rows of many tensors, and their checksums.

Compiled (`rows.c`) where the package was built with a C compiler: it takes the interpreter once for all rows,
which leaves it to the engine that runs meanwhile.
"""

import errno
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import xxhash

from ..kernels.native import compiled

IOV_MAX = 1024  # pieces of one write: Linux takes no more
CHUNK = 1 << 20  # bytes written at a time: the checksum has brought them into the core's cache

Row = np.ndarray | memoryview  # contiguous, and a buffer to Python


class Run(NamedTuple):
    """Rows that lie side by side in the file from byte `offset` on."""

    offset: int
    rows: Sequence[Row]


LIBRARY: Any = compiled("_rows", __package__)


def write_runs(fd: int, runs: Sequence[Run]) -> np.ndarray:
    """Write them; gives the XXH3-64 of every row, uint64 [row].  OSError where the disk is full."""
    rows = [row for run in runs for row in run.rows]
    if LIBRARY is None:
        return np.array([sum for run in runs for sum in _write_run(fd, run)], np.uint64)
    sums = np.empty(len(rows), np.uint64)
    LIBRARY.write_runs(fd, np.array([(run.offset, len(run.rows)) for run in runs], np.int64), rows, sums)
    return sums


def write_columns(fd: int, columns: np.ndarray, blocks: Sequence[np.ndarray]) -> np.ndarray:
    """Write what blocks of bytes hold of several tensors; gives the XXH3-64s, uint64 [block, tensor].

    `columns` int64 [tensor, 3]: where a tensor's rows begin in every block, the bytes of a row, and where in
    the file the first block's lies, the others' behind it.
    """
    if LIBRARY is not None:
        sums = np.empty((len(blocks), len(columns)), np.uint64)
        LIBRARY.write_columns(fd, columns, list(blocks), sums)
        return sums
    views = [memoryview(block) for block in blocks]
    runs = [
        Run(offset, [view[begin : begin + size] for view in views])
        for begin, size, offset in columns.tolist()
    ]
    return write_runs(fd, runs).reshape(len(columns), len(blocks)).T


def _write_run(fd: int, run: Run) -> list[int]:
    if len(run.rows) != 1:
        write_all(fd, run.rows, run.offset)
        return [*map(xxhash.xxh3_64_intdigest, run.rows)]
    data, digest = memoryview(run.rows[0]).cast("B"), xxhash.xxh3_64()
    for first in range(0, len(data), CHUNK):
        chunk = data[first : first + CHUNK]
        digest.update(chunk)
        write_all(fd, [chunk], run.offset + first)
    return [digest.intdigest()]


def write_all(fd: int, rows: Sequence[Row], offset: int) -> None:
    """Write rows side by side from `offset` on; OSError where the disk is full."""
    size = sum(row.nbytes for row in rows)
    while size:
        written = os.pwritev(fd, rows[:IOV_MAX], offset)
        if written == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        offset, size = offset + written, size - written
        rows = _end(rows, size)


def _end(rows: Sequence[Row], size: int) -> list[Row]:
    """The last `size` bytes of `rows`."""
    kept: list[Row] = []
    for row in reversed(rows if size else ()):
        if not size:
            break
        kept.append(memoryview(row).cast("B")[-size:])
        size -= kept[-1].nbytes
    return kept[::-1]
