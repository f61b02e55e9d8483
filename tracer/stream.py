"""The raw stream `.ttr`: what engines append tensors to while they run, and `trace import` reads.

Append-only, so that it can be written without knowing what will come, and so that a crash leaves a prefix
that is whole.  The C header `examples/engine/tensortrace.h` and the Python `Recorder` write it;
docs/stream.md states the layout.
"""

import math
import mmap
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType

import numpy as np
import xxhash

from .errors import UserError
from .format import numpy_dtype

MAGIC, VERSION = b"TTRS", (1, 0)
HEAD, STEP, TENSOR, END = b"HEAD", b"STEP", b"TENS", b"END "
UNKNOWN = -1  # in place of a layer, a position or a token id

_FILE = struct.Struct("<4sHH")  # magic, major, minor
_RECORD = struct.Struct("<4sIQQ")  # kind, zero, bytes of the body, checksum
_STEP = struct.Struct("<iiq")  # step, tokens, position of the first
_TENSOR = struct.Struct("<iiII")  # step, layer, axes, bytes of text
_ALIGN = 32  # a tensor's values begin at a multiple of this inside the body: whole stripes for the checksum
_MAX_AXES = 8
_MAX_TEXT = 1 << 16  # bytes of names of one tensor


@dataclass(frozen=True)
class StreamStep:
    """One forward pass as the engine announced it; `start` is None where it did not say."""

    index: int
    start: int | None
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class StreamTensor:
    """One tensor: where its values lie in the file, C order."""

    step: int
    layer: int | None
    name: str
    dtype: str
    shape: tuple[int, ...]
    axes: tuple[str, ...]  # empty where the engine did not say
    source: str
    offset: int


@dataclass
class Stream:
    """The index of a stream.  `end` says how it ended where that was not by `close`."""

    path: Path
    meta: dict[str, str] = field(default_factory=dict)
    steps: list[StreamStep] = field(default_factory=list)
    tensors: list[StreamTensor] = field(default_factory=list)
    end: str = "the engine did not close it"

    @property
    def complete(self) -> bool:
        return not self.end

    @cached_property
    def _map(self) -> np.memmap:
        return np.memmap(self.path, np.uint8, "r")

    def load(self, tensor: StreamTensor) -> np.ndarray:
        """The values of a tensor: a read-only view of the mapped file."""
        dtype = numpy_dtype(tensor.dtype)
        end = tensor.offset + math.prod(tensor.shape) * dtype.itemsize
        return self._map[tensor.offset : end].view(dtype).reshape(tensor.shape)


def checksum(kind: bytes, *parts: bytes | memoryview) -> int:
    """XXH64 of the body, seeded with the record's kind and length, so that those are checked, too."""
    length = sum(len(part) for part in parts)
    digest = xxhash.xxh64(seed=(int.from_bytes(kind, "little") << 32) + length & (1 << 64) - 1)
    for part in parts:
        digest.update(part)
    return digest.intdigest()


class StreamWriter:
    """Appends records to a new file.  Every record is handed to the system before the call returns."""

    def __init__(self, path: Path | str, meta: Mapping[str, object]):
        self.path = Path(path)
        try:
            self._file = self.path.open("xb", buffering=0)
        except FileExistsError:
            raise UserError(
                f"{self.path} exists: the spool of an earlier run that did not end; "
                "`trace import` makes a trace of it, or delete it"
            ) from None
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror}") from error
        self._write(_FILE.pack(MAGIC, *VERSION))
        self.meta(meta)

    def meta(self, entries: Mapping[str, object]) -> None:
        """Record facts about the run, such as engine=mine."""
        lines = (f"{_one_line(key)}={_one_line(str(value))}\n" for key, value in entries.items())
        self._record(HEAD, "".join(lines).encode("utf-8", "backslashreplace"))

    def step(self, index: int, tokens: Sequence[int] = (), start: int | None = None) -> None:
        """Announce a forward pass over `tokens`, the first of which is at position `start`."""
        ids = np.asarray(tokens, "<i4")
        self._record(STEP, _STEP.pack(index, len(ids), UNKNOWN if start is None else start), ids.tobytes())

    def tensor(
        self,
        step: int,
        name: str,
        array: np.ndarray,
        *,
        layer: int | None = None,
        axes: Sequence[str] = (),
        source: str = "",
    ) -> None:
        """Append a tensor; its dtype must be one that a trace can store."""
        array = np.ascontiguousarray(array)
        texts = (name, array.dtype.name, ",".join(axes), source)
        text = b"".join(_one_line(part).encode("utf-8", "backslashreplace") + b"\0" for part in texts)
        size = _TENSOR.size + 8 * array.ndim + len(text)
        text += bytes(-size % _ALIGN)
        head = _TENSOR.pack(step, UNKNOWN if layer is None else layer, array.ndim, len(text))
        head += struct.pack(f"<{array.ndim}Q", *array.shape) + text
        self._record(TENSOR, head, memoryview(array.reshape(-1).view(np.uint8)))

    def close(self) -> None:
        """End the stream: from now on it counts as complete."""
        self._record(END)
        self.abandon()

    def abandon(self) -> None:
        """Close the file as it is, as a crash would leave it."""
        self._file.close()

    def __enter__(self) -> "StreamWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()

    def _record(self, kind: bytes, *parts: bytes | memoryview) -> None:
        length = sum(len(part) for part in parts)
        self._write(_RECORD.pack(kind, 0, length, checksum(kind, *parts)))
        for part in parts:
            self._write(part)

    def _write(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        try:
            while len(view):
                view = view[self._file.write(view) :]
        except OSError as error:
            raise UserError(f"writing {self.path} failed: {error.strerror}") from error


def _one_line(text: str) -> str:
    """`text` without the characters that end a value."""
    return text.replace("\n", " ").replace("\0", " ")


def read_stream(path: Path | str) -> Stream:
    """Index a stream up to its end, or to where a crash or damage cut it off (`Stream.end` says which).

    UserError where it is not a stream at all.
    """
    stream = Stream(Path(path))
    try:
        with stream.path.open("rb") as file:
            if not file.seek(0, 2):
                raise UserError(f"{path} is empty: the engine did not get as far as writing")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as view:
                _read_records(view, stream)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    return stream


def _read_records(view: memoryview, stream: Stream) -> None:
    if len(view) < _FILE.size or view[:4] != MAGIC:
        raise UserError(f"{stream.path} is not a tensortrace stream")
    _, major, minor = _FILE.unpack_from(view)
    if major > VERSION[0]:
        raise UserError(
            f"{stream.path} has stream version {major}.{minor}, this program reads up to {VERSION[0]}.x: "
            "update tensortrace"
        )
    at = _FILE.size
    while at < len(view):
        if len(view) - at < _RECORD.size:
            stream.end = f"it is cut off inside a record at byte {at}"
            return
        kind, _, length, expected = _RECORD.unpack_from(view, at)
        body = at + _RECORD.size
        if length > len(view) - body:
            stream.end = f"it is cut off inside a record at byte {at}"
            return
        with view[body : body + length] as content:
            if checksum(kind, content) != expected or not _read_record(kind, content, body, stream):
                stream.end = f"it is damaged at byte {at}"
                return
        at = body + length
        if kind == END:
            stream.end = "" if at == len(view) else f"it goes on after its end at byte {at}"
            return


def _read_record(kind: bytes, body: memoryview, offset: int, stream: Stream) -> bool:
    """Add one record to the index; False where its content contradicts itself."""
    if kind == HEAD:
        for line in bytes(body).decode("utf-8", "replace").split("\n"):
            key, equals, value = line.partition("=")
            if equals:
                stream.meta[key] = value
    elif kind == STEP:
        return _read_step(body, stream)
    elif kind == TENSOR:
        return _read_tensor(body, offset, stream)
    return True  # another kind comes from a newer minor version


def _read_step(body: memoryview, stream: Stream) -> bool:
    if len(body) < _STEP.size:
        return False
    index, count, start = _STEP.unpack_from(body)
    if index < 0 or count < 0 or len(body) != _STEP.size + 4 * count:
        return False
    ids = np.frombuffer(body, "<i4", count, _STEP.size) if count else np.empty(0, np.int32)
    stream.steps.append(StreamStep(index, None if start < 0 else start, tuple(ids.tolist())))
    return True


def _read_tensor(body: memoryview, offset: int, stream: Stream) -> bool:
    if len(body) < _TENSOR.size:
        return False
    step, layer, rank, text_bytes = _TENSOR.unpack_from(body)
    head = _TENSOR.size + 8 * rank + text_bytes
    if step < 0 or rank > _MAX_AXES or text_bytes > _MAX_TEXT or head > len(body):
        return False
    shape = struct.unpack_from(f"<{rank}Q", body, _TENSOR.size)
    text = bytes(body[head - text_bytes : head]).decode("utf-8", "replace").split("\0")
    if len(text) < 4:
        return False
    name, dtype, axes, source = text[:4]
    try:
        size = numpy_dtype(dtype).itemsize
    except ValueError:
        return False
    if not name or math.prod(shape) * size != len(body) - head:
        return False
    known = tuple(axes.split(",")) if axes else ()
    where = None if layer < 0 else layer
    stream.tensors.append(StreamTensor(step, where, name, dtype, shape, known, source, offset + head))
    return True
