"""Writing a trace: the whole structure first, then plain writes at known offsets.

Every dataset is created, contiguous and at its final size, before the first step runs; the hot loop then
only calls pwrite.  HDF5 is not touched again, so a killed process leaves a valid file in which the
checksum table says what had been written (and a full disk shows as a short write instead of silence).
"""

import errno
import os
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import xxhash

from .background import Background
from .errors import TraceError
from .format import ROW_AXES, Header, Step, TensorSpec, numpy_dtype
from .layout import Layout
from .names import Key
from .packed import Pending, Places, unpack
from .structure import PIECE_BYTES, create

BUFFER_BYTES = 256 << 20  # of arrays that wait for the writer thread
FLUSH_SECONDS = 0.25  # decode steps are gathered this long: their rows are neighbours, so one write does
FLUSH_BYTES = 64 << 20
MARK_AT_ONCE = 64 * 1024  # bytes: pieces this large are marked as written without waiting for the step's end


class TraceWriter:
    """Writes one run.  Use as a context manager; without `finish` the trace stays marked incomplete.

    `write` hands an array over to a writer thread and must not be followed by changes to the array;
    `end_step` makes the step count as flushed.  A failed write raises TraceError from the next call.
    """

    def __init__(
        self,
        path: Path | str,
        header: Header,
        tensors: Sequence[TensorSpec],
        steps: Sequence[Step],
        *,
        recorded: Sequence[int] | None = None,
        buffer_bytes: int = BUFFER_BYTES,
    ):
        """`recorded` are the indices of the tokens whose rows are kept, ascending; None keeps all."""
        self.path = Path(path)
        self.steps = list(steps)
        self.tensors = {spec.key: spec for spec in tensors}
        kept = np.arange(max(step.kv_len for step in steps)) if recorded is None else recorded
        self._layout = Layout(steps, np.asarray(kept, np.int64))
        self._column = {key: i for i, key in enumerate(self.tensors)}
        self._checksums = np.zeros((len(self.steps), len(self.tensors)), np.uint64)
        self._flushed = 0
        self._gathered: dict[Key, list[tuple[int, np.ndarray]]] = {}  # rows of decode steps, by (step, row)
        self._blocks: list[int] = []  # decode steps that lie packed in `_stage`, as `_places` says
        self._stage = np.empty((0, 0), np.uint8)
        self._places: Places = {}
        self._gathered_bytes = 0
        self._ended: list[int] = []
        self._last_flush = time.monotonic()
        self.bytes_written = 0
        self._slots = create(self.path, header, list(self.tensors.values()), self._layout)
        self._fd = os.open(self.path, os.O_WRONLY)
        self._thread = Background("trace-writer", buffer_bytes)

    # ---- what callers use

    def rows(self, step: int) -> np.ndarray:
        """Which rows of the step's tensors are recorded (indices inside the step)."""
        return self._layout.tokens(step) - self.steps[step].start

    def write(self, step: int, key: Key, array: np.ndarray | Pending) -> None:
        """Record `array`, shaped as the tensor's axes say, all tokens of the step included."""
        if key in self.tensors and self._layout.rows(step):
            soon = not isinstance(array, np.ndarray)  # a GPU's buffer is wanted back
            self._put(self._select_and_store, step, key, array, nbytes=array.nbytes, soon=soon)

    def write_packed(self, step: int, block: Pending, places: Places) -> None:
        """Record a whole decode step that lies in one block; `places` are the same in every step."""
        if self._layout.rows(step):
            self._put(self._keep_block, step, block, places, nbytes=block.nbytes)

    def write_recorded(self, step: int, key: Key, array: np.ndarray) -> None:
        """Record `array` that holds just the step's recorded rows already (of another trace)."""
        self._put(self._store, step, key, array, nbytes=array.nbytes, soon=False)

    def write_tokens(
        self, start: int, ids: Sequence[int] | np.ndarray, pieces: Sequence[bytes] | None = None
    ) -> None:
        """Record the ids (and texts) of the tokens from index `start` on."""
        self._put(self._write_rows, "/tokens", start, np.asarray(ids, np.int32))
        if pieces is not None:
            self._put(self._write_rows, "/pieces", start, np.array(pieces, f"S{PIECE_BYTES}"))

    def write_generated(self, index: int, token: int) -> None:
        """Record the token that was generated as number `index` of the new ones."""
        self._put(self._write_rows, "/generated", index, np.array([token], np.int32))

    def end_step(self, step: int) -> None:
        """Everything of `step` was handed over: it counts as flushed once the writer gets here."""
        self._put(self._mark_step, step)

    def finish(self) -> None:
        """Mark the run complete."""
        self._put(self._flush)
        self._put(self._write_rows, "/complete", 0, np.ones(1, np.uint8))
        self.close()

    def close(self) -> None:
        """Wait until all is written; raises TraceError where something could not be."""
        if self._fd < 0:
            return
        self._thread.put(self._flush)
        self._thread.finish()
        os.close(self._fd)
        self._fd = -1
        self._raise_failed()

    def __enter__(self) -> "TraceWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
            return
        try:  # the first error is the one to show
            self.close()
        except TraceError:
            if self._thread.error is None:
                raise

    # ---- the writer thread

    def _put(self, action: Callable[..., None], *arguments: Any, nbytes: int = 0, soon: bool = True) -> None:
        self._thread.put(action, *arguments, nbytes=nbytes, soon=soon)
        self._raise_failed()

    def _raise_failed(self) -> None:
        error = self._thread.error
        if error is None:
            return
        if not isinstance(error, OSError):
            raise error
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
        raise TraceError(
            f"writing {self.path} failed: {reason}; the {self._flushed} of {len(self.steps)} steps written "
            "so far are readable: free some space or record fewer tensors"
        ) from error

    def _select_and_store(self, step: int, key: Key, array: np.ndarray | Pending) -> None:
        values = np.asarray(array)
        if self._layout.rows(step) < self.steps[step].n_tokens:
            axis = next(i for i, axis in enumerate(self.tensors[key].axes) if axis in ROW_AXES)
            values = np.take(values, self.rows(step), axis)
        self._store(step, key, values)
        if not isinstance(array, np.ndarray):
            array.release()

    def _store(self, step: int, key: Key, array: np.ndarray) -> None:
        spec, place = self.tensors[key], self._layout.place(self.tensors[key], step)
        expected = self._layout.shape(spec, step)
        if array.shape != expected:
            raise TraceError(f"{key}: recorded as {array.shape}, announced as {expected}")
        data = np.ascontiguousarray(array, numpy_dtype(spec.dtype))
        if self.steps[step].phase == "decode":
            padded = _pad(data, place.shape[1:])[None] if self._layout.is_padded(spec, step) else data
            self._gathered.setdefault(key, []).append((step, padded))
            self._gathered_bytes += padded.nbytes
            return
        self._write_neighbours(key, [step], data)
        if data.nbytes >= MARK_AT_ONCE:
            column = self._column[key]
            self._write_checksums(step, column, self._checksums[step, column : column + 1])

    def _keep_block(self, step: int, block: Pending, places: Places) -> None:
        if not len(self._stage):
            self._stage = np.empty((max(1, FLUSH_BYTES // block.nbytes), block.nbytes), np.uint8)
        if len(self._blocks) == len(self._stage):
            self._flush()
        self._stage[len(self._blocks)] = np.asarray(block)
        block.release()
        self._blocks.append(step)
        self._places = places

    def _write_neighbours(self, key: Key, steps: list[int], data: np.ndarray) -> None:
        """Write the rows of steps that lie side by side in the file, [row, ...] or a whole prefill block."""
        place = self._layout.place(self.tensors[key], steps[0])
        slot = self._slots[place.path]
        raw = data.reshape(len(steps), -1).view(np.uint8)
        self._pwrite(raw.reshape(-1), slot.offset + place.first * slot.row_bytes)
        for step, row in zip(steps, raw, strict=True):
            self._checksums[step, self._column[key]] = xxhash.xxh3_64_intdigest(row) or 1  # 0: not written

    def _flush(self) -> None:
        """Write what was gathered of decode steps, and mark the steps that have ended."""
        if self._blocks:
            for key, rows in unpack(self._stage[: len(self._blocks)], self._places):
                if key in self.tensors:
                    data = np.ascontiguousarray(rows, numpy_dtype(self.tensors[key].dtype))
                    self._write_neighbours(key, self._blocks, data)
        for key, pieces in self._gathered.items():
            for run in self._neighbours(key, pieces):
                steps, rows = zip(*run, strict=True)
                self._write_neighbours(key, list(steps), np.concatenate(rows))
        self._blocks, self._gathered, self._gathered_bytes = [], {}, 0
        if self._ended:
            first, last = self._ended[0], self._ended[-1] + 1
            self._write_checksums(first, 0, self._checksums[first:last])
            self._write_rows("/steps/flushed", first, np.ones(last - first, np.uint8))
            self._flushed += last - first
        self._ended, self._last_flush = [], time.monotonic()

    def _neighbours(
        self, key: Key, pieces: list[tuple[int, np.ndarray]]
    ) -> Iterator[list[tuple[int, np.ndarray]]]:
        """`pieces` in runs whose rows follow one another: all at once unless an engine left a step out."""
        spec = self.tensors[key]
        rows = enumerate(self._layout.place(spec, step).first for step, _ in pieces)
        for _, run in groupby(zip(rows, pieces, strict=True), lambda entry: entry[0][1] - entry[0][0]):
            yield [piece for _, piece in run]

    def _write_checksums(self, step: int, column: int, sums: np.ndarray) -> None:
        offset = self._slots["/steps/checksums"].offset + (step * len(self.tensors) + column) * 8
        self._pwrite(sums.reshape(-1), offset)

    def _mark_step(self, step: int) -> None:
        self._ended.append(step)
        waited = time.monotonic() - self._last_flush
        decode = self.steps[step].phase == "decode"
        if not decode or waited > FLUSH_SECONDS or self._gathered_bytes > FLUSH_BYTES:
            self._flush()

    def _write_rows(self, path: str, first: int, array: np.ndarray) -> None:
        slot = self._slots[path]
        self._pwrite(array, slot.offset + first * slot.row_bytes)

    def _pwrite(self, array: np.ndarray, offset: int) -> None:
        view = memoryview(array.view(np.uint8))
        while len(view):
            written = os.pwrite(self._fd, view, offset)
            if written == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            view, offset = view[written:], offset + written
            self.bytes_written += written


def _pad(data: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """`data` in the low corner of a NaN-filled array of `shape`."""
    if data.shape == shape:
        return data
    padded = np.full(shape, np.nan, data.dtype)
    padded[tuple(slice(size) for size in data.shape)] = data
    return padded
