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
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from .background import Background
from .errors import TraceError
from .format import ROW_AXES, Header, Step, TensorSpec, numpy_dtype
from .layout import Layout
from .names import Key
from .packed import Pending, Place, Places, let_go
from .rows import Row, Run, write_all, write_columns, write_runs
from .stage import Stage, as_stored, neighbours, padded
from .structure import PIECE_BYTES, Slot, create

BUFFER_BYTES = 256 << 20  # of arrays that wait for the writer thread
FLUSH_SECONDS = 0.25  # decode steps are gathered this long: their rows are neighbours, so one write does
FLUSH_BYTES = 64 << 20  # and no more of them than this
MARK_AT_ONCE = 64 * 1024  # bytes: pieces this large are marked as written without waiting for the step's end

Gathered = tuple[Key, list[int], list[np.ndarray]]  # a tensor, steps, and what each of them has of it
Neighbours = tuple[Key, list[int], list[Row]]  # the same as rows that lie side by side in the file


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
        self._decodes = [step.phase == "decode" for step in steps]
        self._layout = Layout(steps, np.asarray(kept, np.int64))
        self._counts = [self._layout.rows(index) for index in range(len(steps))]
        self._column = {key: i for i, key in enumerate(self.tensors)}
        self._checksums = np.zeros((len(self.steps), len(self.tensors)), np.uint64)
        self._flushed = 0
        self._stage = Stage(self._layout)  # the decode steps since the last flush
        self._blocks: dict[int, Pending] = {}  # the same of an engine that hands over whole steps
        self._places: Places = {}
        self._in_blocks: _InBlocks
        self._shapes: dict[tuple[Any, ...], list[tuple[int, ...]]] = {}
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
        if self._decodes[step] and self._counts[step] and isinstance(array, np.ndarray):
            self._stage.kept[step][key] = array  # for a step's 600 tensors, every line here counts
        elif key not in self.tensors or not self._counts[step]:
            let_go(array)
        elif self._decodes[step]:
            self._stage.kept[step][key] = np.array(array)
            let_go(array)
        else:
            soon = not isinstance(array, np.ndarray)  # a GPU's buffer is wanted back
            self._put(self._select_and_store, step, key, array, nbytes=array.nbytes, soon=soon)

    def write_packed(self, step: int, block: Pending, places: Places) -> None:
        """Record a whole decode step that lies in one block; `places` are the same in every step."""
        if self._counts[step]:
            self._put(self._keep_block, step, block, places, nbytes=block.nbytes)
        else:
            let_go(block)

    def write_recorded(self, step: int, key: Key, array: np.ndarray) -> None:
        """Record `array` that holds just the step's recorded rows already (of another trace)."""
        if self._decodes[step]:
            self._stage.kept[step][key] = array
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
        self._ended.append(step)
        waited = time.monotonic() - self._last_flush
        if not self._decodes[step] or waited > FLUSH_SECONDS or self._stage.nbytes > FLUSH_BYTES:
            self._hand_over()
        self._raise_failed()

    def finish(self) -> None:
        """Mark the run complete."""
        self._hand_over()
        self._put(self._write_rows, "/complete", 0, np.ones(1, np.uint8))
        self.close()

    def close(self) -> None:
        """Wait until all is written; raises TraceError where something could not be."""
        if self._fd < 0:
            return
        if self._thread.error is None:
            self._hand_over()
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

    # ---- gathering decode steps

    def _hand_over(self) -> None:
        """Have what was gathered written, and the steps that have ended marked."""
        stage, ended = self._stage, self._ended
        self._stage, self._ended, self._last_flush = Stage(self._layout), [], time.monotonic()
        self._thread.put(self._flush, stage, ended, nbytes=stage.nbytes)

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
        if self._counts[step] < self.steps[step].n_tokens:
            axis = next((i for i, axis in enumerate(self.tensors[key].axes) if axis in ROW_AXES), None)
            values = values if axis is None else np.take(values, self.rows(step), axis)
        self._store(step, key, values)
        let_go(array)

    def _store(self, step: int, key: Key, array: np.ndarray) -> None:
        spec = self.tensors[key]
        expected = self._layout.shape(spec, step)
        if array.shape != expected:
            raise _misshapen(key, array.shape, expected)
        data, place = _bytes(as_stored(array, numpy_dtype(spec.dtype))), self._layout.place(spec, step)
        slot, column = self._slots[place.path], self._column[key]
        run = Run(slot.offset + place.first * slot.row_bytes, [data])
        self._checksums[step, column] = max(write_runs(self._fd, [run])[0], 1)  # 0: not written
        self.bytes_written += len(data)
        if len(data) >= MARK_AT_ONCE:
            self._write_checksums(step, column, self._checksums[step, column : column + 1])

    def _keep_block(self, step: int, block: Pending, places: Places) -> None:
        if places is not self._places:
            self._write_blocks()
            self._places, self._in_blocks = places, _InBlocks(places, self.tensors, self._slots, self._column)
        self._blocks[step] = block
        if len(self._blocks) * block.nbytes >= FLUSH_BYTES:
            self._write_blocks()

    def _flush(self, stage: Stage, ended: list[int]) -> None:
        """Write what was gathered of decode steps, and mark the steps that have ended."""
        self._write_blocks()
        self._shapes.clear()
        self._write_neighbours(self._as_rows(list(stage.runs(self.tensors))))
        if ended:
            first, last = ended[0], ended[-1] + 1
            self._write_checksums(first, 0, self._checksums[first:last])
            self._write_rows("/steps/flushed", first, np.ones(last - first, np.uint8))
            self._flushed += last - first

    def _as_rows(self, runs: list[Gathered]) -> list[Neighbours]:
        """Each step's arrays as their rows are stored; all layers' scores, and so on, are padded at once."""
        found: list[Neighbours] = []
        alike: defaultdict[tuple[Any, ...], list[Gathered]] = defaultdict(list)
        for key, steps, arrays in runs:
            spec = self.tensors[key]
            shapes = (
                self._shapes_of(spec, steps[:1]) * len(steps) if spec.joined else self._shapes_of(spec, steps)
            )
            given = [array.shape for array in arrays]
            if given != shapes:
                raise next(_misshapen(key, *both) for both in zip(given, shapes) if both[0] != both[1])
            if spec.joined:
                found.append((key, steps, _rows_of(arrays, numpy_dtype(spec.dtype))))
            else:
                row = self._layout.place(spec, steps[0]).shape[1:]
                alike[(spec.dtype, row, *shapes)].append((key, steps, arrays))
        for (dtype, row, *_), group in alike.items():
            rows = padded([arrays for _, _, arrays in group], row, numpy_dtype(dtype))
            found += [(key, steps, _rows_of([*own], rows.dtype)) for (key, steps, _), own in zip(group, rows)]
        return found

    def _shapes_of(self, spec: TensorSpec, steps: list[int]) -> list[tuple[int, ...]]:
        """The shapes of a tensor in some steps; all layers have the same, so they are worked out once."""
        which = spec.axes, *spec.sizes.values(), *steps
        if which not in self._shapes:
            self._shapes[which] = [self._layout.shape(spec, step) for step in steps]
        return self._shapes[which]

    def _write_blocks(self) -> None:
        """Write the rows from where they lie: in each step's block."""
        steps, blocks = list(self._blocks), list(self._blocks.values())
        self._blocks = {}
        try:
            arrays = [np.asarray(block) for block in blocks]
            for first, last in pairwise(neighbours(self._layout, steps)) if steps else ():
                self._write_columns(steps[first:last], arrays[first:last])
        finally:
            for block in blocks:
                block.release()

    def _write_columns(self, steps: list[int], blocks: list[np.ndarray]) -> None:
        """Write the rows that blocks of neighbouring steps hold."""
        tensors = self._in_blocks
        rows = np.where(tensors.joined, self._layout.joined_row(steps[0]), self._layout.decode_row(steps[0]))
        begin, size, offset = tensors.columns.T
        columns = np.stack((begin, size, offset + rows * size), axis=1)
        sums = write_columns(self._fd, columns, blocks)
        self._checksums[np.ix_(steps, tensors.numbers)] = np.maximum(sums, 1)  # 0: not written
        self.bytes_written += int(size.sum()) * len(steps)
        converted = [(key, steps, _stored(blocks, self._places[key], dtype)) for key, dtype in tensors.others]
        self._write_neighbours(converted)

    def _write_neighbours(self, found: list[Neighbours]) -> None:
        """Write rows of bytes, and keep their checksums."""
        runs = []
        for key, steps, rows in found:
            place = self._layout.place(self.tensors[key], steps[0])
            slot = self._slots[place.path]
            runs.append(Run(slot.offset + place.first * slot.row_bytes, rows))
            self.bytes_written += len(rows) * slot.row_bytes
        numbers = np.repeat([self._column[key] for key, _, _ in found], [len(steps) for _, steps, _ in found])
        where = [step for _, steps, _ in found for step in steps]
        if found:
            self._checksums[where, numbers] = np.maximum(write_runs(self._fd, runs), 1)  # 0: not written

    def _write_checksums(self, step: int, column: int, sums: np.ndarray) -> None:
        offset = self._slots["/steps/checksums"].offset + (step * len(self.tensors) + column) * 8
        self._pwrite(_bytes(sums), offset)

    def _write_rows(self, path: str, first: int, array: np.ndarray) -> None:
        slot = self._slots[path]
        self._pwrite(_bytes(array), slot.offset + first * slot.row_bytes)

    def _pwrite(self, data: memoryview, offset: int) -> None:
        write_all(self._fd, [data], offset)
        self.bytes_written += data.nbytes


class _InBlocks:
    """The tensors in an engine's blocks.

    Of those that are stored as they are there: `columns` [tensor, (begin, size, offset of row 0)], `numbers`
    in the catalog and `joined`, whether they have a row for every token.  `others` are of another type.
    """

    def __init__(
        self, places: Places, specs: dict[Key, TensorSpec], slots: dict[str, Slot], number: dict[Key, int]
    ):
        here = {key: numpy_dtype(specs[key].dtype) for key in places if key in specs}
        same = [key for key, dtype in here.items() if dtype == places[key].dtype]
        self.others = [(key, dtype) for key, dtype in here.items() if dtype != places[key].dtype]
        self.numbers = [number[key] for key in same]
        self.joined = np.array([specs[key].joined for key in same], bool)
        found = [slots[key.path if specs[key].joined else f"{key.path}/decode"] for key in same]
        for key, slot in zip(same, found):
            if places[key].nbytes != slot.row_bytes:
                raise TraceError(f"{key}: {places[key].nbytes} bytes a step, announced as {slot.row_bytes}")
        table = [(places[key].offset, slot.row_bytes, slot.offset) for key, slot in zip(same, found)]
        self.columns = np.array(table, np.int64).reshape(-1, 3)


def _rows_of(arrays: list[np.ndarray], dtype: np.dtype) -> list[Row]:
    """Arrays as rows of `dtype`, without a copy where that is what they are."""
    same = [a if a.dtype is dtype and a.flags.c_contiguous else as_stored(a, dtype) for a in arrays]
    return [*same] if dtype.isbuiltin == 1 else [_bytes(row) for row in same]  # bfloat16 is no buffer


def _stored(blocks: list[np.ndarray], place: Place, dtype: np.dtype) -> list[Row]:
    """A tensor's rows in several blocks, each as it is stored."""
    return [_bytes(as_stored(block[place.span].view(place.dtype), dtype)) for block in blocks]


def _bytes(array: np.ndarray) -> memoryview:
    return memoryview(array.reshape(-1).view(np.uint8))


def _misshapen(key: Key, shape: tuple[int, ...], expected: tuple[int, ...]) -> TraceError:
    return TraceError(f"{key}: recorded as {shape}, announced as {expected}")
