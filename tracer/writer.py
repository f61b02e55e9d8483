"""Writing a trace: the whole structure first, then plain writes at known offsets.

Every dataset is created, contiguous and at its final size, before the first step runs; the hot loop then
only calls pwritev.  HDF5 is not touched again, so a killed process leaves a valid file in which the
checksum table says what had been written (and a full disk shows as a short write instead of silence).
"""

import errno
import os
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from .background import Background
from .errors import TraceError
from .format import ROW_AXES, Header, Step, TensorSpec, numpy_dtype
from .layout import Layout
from .names import Key
from .pack import Form, misshapen
from .packed import PackedStep, Pending, Places, convert, lay_out, let_go
from .rows import write_all, write_columns, write_row
from .structure import PIECE_BYTES, Slot, create

BUFFER_BYTES = 256 << 20  # of arrays that wait for the writer thread
FLUSH_SECONDS = 0.25  # decode steps are gathered this long: their rows are neighbours, so one write does
FLUSH_BYTES = 16 << 20  # and no more of them than this
WAITING_BYTES = 32 << 20  # of steps packed here, before the engine waits: their memory is used again
MARK_AT_ONCE = 64 * 1024  # bytes: pieces this large are marked as written without waiting for the step's end


class TraceWriter:
    """Writes one run.  Use as a context manager; without `finish` the trace stays marked incomplete.

    `write` hands an array over to a writer thread and must not be followed by changes to the array;
    `end_step` makes the step count as flushed.  A failed write or a wrong shape raises TraceError from that
    call or a later one, and the trace stays incomplete.
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
        self._decodes = [step.phase == "decode" for step in steps]
        self._layout = Layout(steps, np.asarray(kept, np.int64))
        self._counts = [self._layout.rows(index) for index in range(len(steps))]
        self._column = {key: i for i, key in enumerate(self.tensors)}
        self._checksums = np.zeros((len(self.steps), len(self.tensors)), np.uint64)
        self._flushed = 0
        self._kept: defaultdict[int, dict[Key, np.ndarray]] = defaultdict(
            dict
        )  # of decode steps that have not ended
        self._form: Form | None = None
        self._error: Exception | None = None  # met here; the writer thread keeps its own
        self._packed: list[PackedStep] = []  # the decode steps since the last flush
        self._columns = _Columns({}, {}, {}, {})
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
        if key not in self.tensors or not self._counts[step]:
            let_go(array)
        elif not self._decodes[step]:
            soon = not isinstance(array, np.ndarray)  # a GPU's buffer is wanted back
            self._put(self._select_and_store, step, key, array, nbytes=array.nbytes, soon=soon)
        elif isinstance(array, np.ndarray):
            self._kept[step][key] = array
        else:
            self._kept[step][key] = np.array(array)
            let_go(array)

    def write_packed(self, step: int, block: Pending, places: Places) -> None:
        """Record a whole decode step that lies in one block; `places` are the same in every step."""
        if not self._counts[step]:
            let_go(block)
            return
        self._packed.append(PackedStep(step, block, places))
        if self._packed_bytes > FLUSH_BYTES:  # before the step ends: the engine may need the block for that
            self._hand_over()

    def write_recorded(self, step: int, key: Key, array: np.ndarray) -> None:
        """Record `array` that holds just the step's recorded rows already (of another trace)."""
        if self._decodes[step]:
            self._kept[step][key] = array
        else:
            self._put(self._store, step, key, array, nbytes=array.nbytes, soon=False)

    def write_tokens(
        self, start: int, ids: Sequence[int] | np.ndarray, pieces: Sequence[bytes] | None = None
    ) -> None:
        """Record the ids (and texts) of the tokens from index `start` on."""
        self._put(self._write_rows, "/tokens", start, np.asarray(ids, np.int32), soon=False)
        if pieces is not None:
            self._put(self._write_rows, "/pieces", start, np.array(pieces, f"S{PIECE_BYTES}"), soon=False)

    def write_generated(self, index: int, token: int) -> None:
        """Record the token that was generated as number `index` of the new ones."""
        self._put(self._write_rows, "/generated", index, np.array([token], np.int32), soon=False)

    def end_step(self, step: int) -> None:
        """Everything of `step` was handed over: it counts as flushed once the writer gets here."""
        self._raise_failed()
        self._pack()
        self._ended.append(step)  # not before: where packing is interrupted, the step is not whole
        waited = time.monotonic() - self._last_flush
        if not self._decodes[step] or waited > FLUSH_SECONDS or self._packed_bytes > FLUSH_BYTES:
            self._hand_over()
        self._raise_failed()

    def finish(self) -> None:
        """Mark the run complete."""
        self._hand_over()
        self._raise_failed()
        self._put(self._write_rows, "/complete", 0, np.ones(1, np.uint8))
        self.close()

    def close(self) -> None:
        """Wait until all is written; raises TraceError where something could not be."""
        if self._fd < 0:
            return
        try:
            self._hand_over()
        finally:
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
        with suppress(TraceError):  # the first error is the one to show
            self.close()

    # ---- gathering decode steps

    def _pack(self) -> None:
        """Put each step's arrays into a block."""
        kept, self._kept = self._kept, defaultdict(dict)
        for step, arrays in kept.items():
            keys = list(arrays)
            if self._form is None or self._form.keys != keys:
                self._form = Form(keys, [self.tensors[key] for key in keys], self._layout)
            try:
                block = self._form.pack(step, list(arrays.values()))
            except Exception as error:
                self._error = error
                raise
            self._packed.append(PackedStep(step, block, self._form.places))

    @property
    def _packed_bytes(self) -> int:
        return sum(step.nbytes for step in self._packed)

    def _hand_over(self) -> None:
        """Have what was gathered written, and the steps that have ended marked."""
        try:
            self._pack()
        finally:
            nbytes, packed, ended = self._packed_bytes, self._packed, self._ended
            self._packed, self._ended, self._last_flush = [], [], time.monotonic()
            self._thread.put(self._flush, ended, *packed, nbytes=nbytes)
        if self._form is not None:
            self._form.pool.wait_for_all_but(WAITING_BYTES)

    # ---- the writer thread

    def _put(self, action: Callable[..., None], *arguments: Any, nbytes: int = 0, soon: bool = True) -> None:
        self._thread.put(action, *arguments, nbytes=nbytes, soon=soon)
        self._raise_failed()

    def _raise_failed(self) -> None:
        error = self._error or self._thread.error
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
        if self._counts[step] < self.steps[step].n_tokens:
            axis = next((i for i, axis in enumerate(self.tensors[key].axes) if axis in ROW_AXES), None)
            values = values if axis is None else np.take(values, self.rows(step), axis)
        self._store(step, key, values)
        let_go(array)

    def _store(self, step: int, key: Key, array: np.ndarray) -> None:
        spec = self.tensors[key]
        expected = self._layout.shape(spec, step)
        if array.shape != expected:
            raise misshapen(key, array.shape, expected)
        with np.errstate(over="ignore"):  # what float16 cannot hold becomes infinite there
            data = _bytes(np.ascontiguousarray(array, numpy_dtype(spec.dtype)))
        place, column = self._layout.place(spec, step), self._column[key]
        slot = self._slots[place.path]
        sum = write_row(self._fd, slot.offset + place.first * slot.row_bytes, data)
        self._checksums[step, column] = max(sum, 1)  # 0: not written
        self.bytes_written += len(data)
        if len(data) >= MARK_AT_ONCE:
            self._write_checksums(step, column, self._checksums[step, column : column + 1])

    def _flush(self, ended: list[int], *packed: PackedStep) -> None:
        """Write what was gathered of decode steps, and mark the steps that have ended."""
        try:
            for _, alike in groupby(packed, key=lambda step: id(step.places)):
                self._write_steps([*alike])
        finally:
            for step in packed:
                step.release()
        if ended:
            first, last = ended[0], ended[-1] + 1
            self._write_checksums(first, 0, self._checksums[first:last])
            self._write_rows("/steps/flushed", first, np.ones(last - first, np.uint8))
            self._flushed += last - first

    def _write_steps(self, packed: list[PackedStep]) -> None:
        """Write the rows of steps whose tensors lie at the same places of their blocks."""
        places = packed[0].places
        if places is not self._columns.places:
            self._columns = _Columns(places, self.tensors, self._slots, self._column)
        columns = self._columns
        blocks = {step.index: columns.as_stored(np.asarray(step)) for step in packed}
        for steps in self._layout.neighbours([*blocks]):
            table = columns.of(self._layout.joined_row(steps[0]), self._layout.decode_row(steps[0]))
            sums = write_columns(self._fd, table, [blocks[step] for step in steps])
            self._checksums[np.ix_(steps, columns.numbers)] = np.maximum(sums, 1)  # 0: not written
            self.bytes_written += int(table[:, 1].sum()) * len(steps)

    def _write_checksums(self, step: int, column: int, sums: np.ndarray) -> None:
        offset = self._slots["/steps/checksums"].offset + (step * len(self.tensors) + column) * 8
        self._pwrite(_bytes(sums), offset)

    def _write_rows(self, path: str, first: int, array: np.ndarray) -> None:
        slot = self._slots[path]
        self._pwrite(_bytes(array), slot.offset + first * slot.row_bytes)

    def _pwrite(self, data: memoryview, offset: int) -> None:
        write_all(self._fd, [data], offset)
        self.bytes_written += data.nbytes


class _Columns:
    """The tensors in the blocks of decode steps, and where their rows belong in the file.

    `numbers` are the tensors' in the catalog.
    """

    def __init__(
        self, places: Places, specs: dict[Key, TensorSpec], slots: dict[str, Slot], number: dict[Key, int]
    ):
        self.places = places
        kept = {key: specs[key] for key in places if key in specs}
        dtypes = {key: numpy_dtype(spec.dtype) for key, spec in kept.items()}
        self._same = all(places[key].dtype == dtype for key, dtype in dtypes.items())
        self._stored, self._size = lay_out({key: (places[key].shape, dtypes[key]) for key in kept})
        here = places if self._same else self._stored
        found = [slots[key.path if spec.joined else f"{key.path}/decode"] for key, spec in kept.items()]
        for key, slot in zip(kept, found):
            if here[key].nbytes != slot.row_bytes:
                raise TraceError(f"{key}: {here[key].nbytes} bytes a step, announced as {slot.row_bytes}")
        table = [(here[key].offset, slot.row_bytes, slot.offset) for key, slot in zip(kept, found)]
        self._table = np.array(table, np.int64).reshape(-1, 3)
        self._joined = np.array([spec.joined for spec in kept.values()], bool)
        self.numbers = [number[key] for key in kept]

    def of(self, joined_row: int, decode_row: int) -> np.ndarray:
        """The columns (see `rows.write_columns`) whose first rows are these, of joined tensors and others."""
        begin, size, offset = self._table.T
        return np.stack((begin, size, offset + np.where(self._joined, joined_row, decode_row) * size), axis=1)

    def as_stored(self, block: np.ndarray) -> np.ndarray:
        """The block with every tensor of the type that the file has."""
        return block if self._same else convert(block, self.places, self._stored, self._size)


def _bytes(array: np.ndarray) -> memoryview:
    return memoryview(array.reshape(-1).view(np.uint8))
