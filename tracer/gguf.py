"""GGUF models: metadata as plain Python, tensors memory-mapped and dequantised on demand.

The header is skimmed here and not by `gguf.GGUFReader`, which builds three NumPy views for every string of
the token and merge arrays (seconds on a small model) and trusts every length that it meets. Types, block
sizes and dequantisation are the `gguf` package's. Layout: the GGUF specification in ggml's docs/gguf.md.
"""

import math
import mmap
import re
import struct
import threading
from collections import OrderedDict
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
from gguf.constants import GGML_QUANT_SIZES, GGUF_DEFAULT_ALIGNMENT, GGUFValueType
from gguf.constants import GGMLQuantizationType as Kind
from gguf.quants import dequantize
from numpy.typing import ArrayLike, DTypeLike, NDArray

from ..kernels.dequantize import Blocks
from .errors import ModelError
from .hub import digest

_ROWS = re.compile(r"(.+)\[(\d+):(\d+)\]")  # a part of a tensor: the numbers of its first row and of the next
_MAX_ITEMS = 1 << 22  # values in one metadata array: ten times the largest vocabulary in use
_MAX_TEXT = 1 << 26  # bytes of one string: some files carry a whole tokenizer.json
_CHUNK = 1 << 17  # elements dequantised at once: 512 KiB of float32 stays in a core's cache

# Freed at once: from then on glibc keeps temporaries below this size instead of returning each to the kernel
# and faulting it in again, which made up more than half of the time to dequantise a model.
np.empty(1 << 24, np.uint8)

# NumPy's types by GGUFValueType; none for strings and arrays
_NUMBERS = ("<u1", "<i1", "<u2", "<i2", "<u4", "<i4", "<f4", "?", None, None, "<u8", "<i8", "<f8")

_CODES = {"F32": "<f4", "F16": "<f2", "F64": "<f8", "I8": "<i1", "I16": "<i2", "I32": "<i4", "I64": "<i8"}
_PLAIN = {Kind[name]: np.dtype(code) for name, code in _CODES.items()}  # no blocks: NumPy reads them

_OTHER_FILES = {  # first bytes -> what was passed by mistake
    b"\x89HDF\r\n\x1a\n": "an HDF5 file: a trace, not a model",
    b"PK\x03\x04": "a zip archive (a PyTorch checkpoint, a wheel or an .npz), not a GGUF",
    b"\x80": "a Python pickle (an old PyTorch checkpoint): convert it to GGUF",
    b"\x1f\x8b": "a gzip archive: unpack it first",
    b"version https://git-lfs": "a Git LFS pointer, not the model itself: run git lfs pull",
    b"tjgg": "a model in ggml's format from before GGUF: convert it again from its source",
    b"<": "a web page or XML (a failed download?), not a GGUF",
}


class _Tensor(NamedTuple):
    kind: Kind
    shape: tuple[int, ...]  # NumPy order: ggml's first axis, the row, comes last
    offset: int  # bytes from the start of the tensor data
    size: int  # bytes


class _Cursor:
    """Walks a GGUF header front to back; no read goes past the end of the file."""

    def __init__(self, buffer: mmap.mmap) -> None:
        self.buffer = buffer
        self.at = 0

    def skip(self, size: int) -> int:
        """Moves `size` bytes on and returns where they begin."""
        start, self.at = self.at, self.at + size
        if self.at > len(self.buffer):
            raise ModelError(f"is cut short or damaged: header runs to byte {self.at} of {len(self.buffer)}")
        return start

    def unpack(self, layout: str) -> tuple[Any, ...]:
        return struct.unpack_from(layout, self.buffer, self.skip(struct.calcsize(layout)))

    def strings(self, count: int) -> list[str]:
        """Bytes that are not UTF-8 become backslash escapes, so that different tokens stay different."""
        texts, length_at = [], struct.Struct("<Q").unpack_from
        for _ in range(count):
            (length,) = length_at(self.buffer, self.skip(8))
            start = self.skip(length)
            if length > _MAX_TEXT:
                raise ModelError(f"is damaged: a string of {length:,} bytes before byte {self.at:,}")
            texts.append(str(self.buffer[start : self.at], "utf-8", "backslashreplace"))
        return texts

    def values(self, kind: int, count: int = 1) -> list[Any]:
        """`count` metadata values of a GGUFValueType other than ARRAY: arrays do not nest."""
        if count > _MAX_ITEMS:
            raise ModelError(f"is damaged: an array of {count:,} values before byte {self.at:,}")
        if kind == GGUFValueType.STRING:
            return self.strings(count)
        if kind >= len(_NUMBERS) or kind == GGUFValueType.ARRAY:
            raise ModelError(f"is damaged: a metadata value of unknown type {kind} before byte {self.at:,}")
        dtype = np.dtype(_NUMBERS[kind])
        start = self.skip(count * dtype.itemsize)
        return np.frombuffer(self.buffer, dtype, count, start).tolist() if count else []

    def metadata(self, count: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for _ in range(count):
            (key,) = self.strings(1)
            if key in found:
                raise ModelError(f"is damaged: metadata key {key[:64]!r} comes twice")
            (kind,) = self.unpack("<I")
            is_array = kind == GGUFValueType.ARRAY
            found[key] = self.values(*self.unpack("<IQ")) if is_array else self.values(kind)[0]
        return found

    def tensors(self, count: int) -> dict[str, _Tensor]:
        found: dict[str, _Tensor] = {}
        for _ in range(count):
            (name,) = self.strings(1)
            if name in found:
                raise ModelError(f"is damaged: tensor {name[:64]!r} comes twice")
            found[name] = self.tensor(f"tensor {name[:64]!r}")
        return found

    def tensor(self, label: str) -> _Tensor:
        (axes,) = self.unpack("<I")
        if not 1 <= axes <= 4:  # ggml's own limit
            raise ModelError(f"is damaged: {label} claims {axes:,} axes")
        *sizes, number, offset = self.unpack(f"<{axes}QIQ")
        if number not in Kind.__members__.values():
            raise ModelError(f"has {label} of type {number}: damaged, or newer than this gguf package")
        kind, shape = Kind(number), tuple(reversed(sizes))
        block, block_bytes = GGML_QUANT_SIZES[kind]
        if 0 in shape or shape[-1] % block:
            raise ModelError(f"is damaged: {label} has shape {shape}; {kind.name} comes in blocks of {block}")
        return _Tensor(kind, shape, offset, math.prod(shape) // block * block_bytes)


class Model:
    """A GGUF file opened for reading; whatever is wrong with it is a ModelError of one line.

    `metadata` holds every key as plain Python (token arrays too), `arch` is general.architecture, `name`
    general.name or the file's, `names` the tensors in file order.
    """

    def __init__(self, path: Path | str, *, memory: int | None = None) -> None:
        """`memory` bytes may hold dequantised weights (default: half of what is free)."""
        self.path = Path(path).expanduser()
        self.memory = memory if memory is not None else psutil.virtual_memory().available // 2
        self._cache: OrderedDict[tuple[str, str], NDArray[Any]] = OrderedDict()
        self._lock = threading.Lock()
        try:
            self._map = _open(self.path)
            self._read_header()
        except ModelError as error:
            raise ModelError(f"{self.path} {error}") from None
        except OSError as error:
            raise ModelError(f"{self.path} cannot be read: {error.strerror}") from None

    def _read_header(self) -> None:
        cursor = _Cursor(self._map)
        _, version, tensors, keys = cursor.unpack("<4sIQQ")
        if version & 0xFFFF == 0:  # the version's own bytes are swapped
            raise ModelError("is damaged, or a big-endian GGUF: convert that with gguf-convert-endian")
        if version not in (2, 3):
            raise ModelError(f"is a GGUF of version {version}; versions 2 and 3 can be read")
        self.metadata = cursor.metadata(keys)
        self._tensors = cursor.tensors(tensors)
        self._start = self._check_layout(cursor.at)
        self.names = tuple(self._tensors)

        self.arch: str = self.metadata.get("general.architecture", "")
        if not isinstance(self.arch, str) or not self.arch:
            raise ModelError("does not name its architecture (metadata key general.architecture)")
        self.name = str(self.metadata.get("general.name") or self.path.stem)
        parts = self.metadata.get("split.count", 0)
        if parts not in (0, 1):
            raise ModelError(f"is one of {parts} parts: join them with llama-gguf-split --merge")

    def _check_layout(self, header: int) -> int:
        """Where the tensor data begins (bytes): all tensors must lie aligned, apart and inside the file."""
        align = self.metadata.get("general.alignment", GGUF_DEFAULT_ALIGNMENT)
        if type(align) is not int or align <= 0 or align & (align - 1):
            raise ModelError("is damaged: general.alignment is not a power of two")
        start, end = -(-header // align) * align, 0
        for name, tensor in sorted(self._tensors.items(), key=lambda entry: entry[1].offset):
            if tensor.offset % align or tensor.offset < end:
                raise ModelError(f"is damaged: tensor {name[:64]!r} is misaligned or overlaps another")
            end = tensor.offset + tensor.size
            if (need := start + end) > (have := len(self._map)):
                raise ModelError(f"is cut short or damaged: {name[:64]!r} runs to byte {need} of {have}")
        return start

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the file, remembered between runs while its size and time of change stay."""
        return digest(self.path)

    def hparam(self, key: str, default: Any = ...) -> Any:
        """The value of `{arch}.{key}`; without a default ModelError where it is missing."""
        full = f"{self.arch}.{key}"
        if default is ... and full not in self.metadata:
            raise ModelError(f"{self.path} has no metadata key {full}")
        return self.metadata.get(full, default)

    def __contains__(self, name: object) -> bool:
        return str(name).partition("[")[0] in self._tensors

    def tensor_type(self, name: str) -> str:
        """The storage type as ggml names it, such as Q4_1."""
        return self._find(name).kind.name

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape in NumPy order: [out, in] for a matrix."""
        return self._find(name).shape

    def raw(self, name: str) -> NDArray[Any]:
        """The memory-mapped values: numbers in their shape, or uint8 [..., row bytes] of a quantised type."""
        kind, shape, offset, size = self._find(name)
        dtype = _PLAIN.get(kind, np.dtype("u1"))
        flat = np.frombuffer(self._map, dtype, size // dtype.itemsize, self._start + offset)
        return flat.reshape(*shape[:-1], -1)

    def blocks(self, name: str) -> Blocks:
        """The memory-mapped matrix in its type."""
        return Blocks(self.raw(name), self.tensor_type(name))

    def weight(self, name: str, dtype: DTypeLike = np.float32) -> NDArray[Any]:
        """The tensor as numbers, read-only; a view of the file where it is stored as `dtype` already.

        Kept for the next call within `memory`; the least recently used goes first.
        """
        dtype, kind = np.dtype(dtype), self._find(name).kind
        if kind in _PLAIN and _PLAIN[kind] == dtype:
            return self.raw(name)
        key = name, dtype.str
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
            values = self._decode(name, self.raw(name), dtype)
            if values.nbytes <= self.memory:
                self._cache[key] = values
            while sum(kept.nbytes for kept in self._cache.values()) > self.memory:
                self._cache.popitem(last=False)
        return values

    def rows(self, name: str, ids: ArrayLike, dtype: DTypeLike = np.float32) -> NDArray[Any]:
        """Rows `ids` of a matrix, [*ids.shape, in], without dequantising the rest of it."""
        ids, count = np.asarray(ids, np.int64), self.shape(name)[0]
        if ids.size and not 0 <= ids.min() <= ids.max() < count:
            raise ModelError(f"{name} has rows 0 to {count - 1}; asked for {ids.min()} to {ids.max()}")
        return self._decode(name, self.raw(name)[ids], np.dtype(dtype))

    def _decode(self, name: str, raw: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
        kind = self._find(name).kind
        if not _can_decode(kind):
            known = ", ".join(kind.name for kind in Kind if _can_decode(kind))
            raise ModelError(f"{self.path}: tensor {name} is {kind.name}; supported are {known}")
        with np.errstate(all="ignore"):  # NaN and infinity in a weight are for the rules to find
            values = (raw if kind in _PLAIN else _dequantise(raw, kind)).astype(dtype, copy=False)
        values.flags.writeable = False
        return values

    def _find(self, name: str) -> _Tensor:
        """The tensor `name`, or with `name[10:20]` these rows of it: Q of a fused Q, K and V."""
        if rows := _ROWS.fullmatch(name):
            whole, (first, last) = self._find(rows[1]), map(int, rows.groups()[1:])
            count = whole.shape[0]
            if not first < last <= count or whole.size % count:
                raise ModelError(f"{self.path}: {rows[1]} has rows 0 to {count - 1}; asked for {name}")
            size = whole.size // count
            shape = last - first, *whole.shape[1:]
            return _Tensor(whole.kind, shape, whole.offset + first * size, (last - first) * size)
        if name not in self._tensors:
            near = "".join(f" (is {close} meant?)" for close in get_close_matches(name, self._tensors, n=1))
            raise ModelError(f"{self.path} has no tensor {name}{near}")
        return self._tensors[name]


def _open(path: Path) -> mmap.mmap:
    """Maps a file that begins as a GGUF; ModelError says what it is otherwise."""
    if not path.is_file():
        raise ModelError("is not a regular file, so not a GGUF" if path.exists() else "does not exist")
    if not path.stat().st_size:
        raise ModelError("is empty")
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if mapped[:4] == b"GGUF":
        return mapped
    if mapped[8:9] == b"{" and int.from_bytes(mapped[:8], "little") < len(mapped):
        raise ModelError("is a safetensors file: convert it to GGUF")
    guesses = (what for magic, what in _OTHER_FILES.items() if mapped[: len(magic)] == magic)
    raise ModelError(f"is {next(guesses, 'not a GGUF file')}")


def _can_decode(kind: Kind) -> bool:
    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        return kind in _PLAIN
    return True


def _dequantise(raw: NDArray[np.uint8], kind: Kind) -> NDArray[np.float32]:
    """Bytes [..., row bytes] -> float32 [..., in], a chunk at a time.

    Blocks do not know rows, so any cut between blocks gives the same numbers. Threads do not pay: two were
    measured two to four times slower than one, as the many short NumPy calls fight for the interpreter.
    """
    block, block_bytes = GGML_QUANT_SIZES[kind]
    blocks = raw.reshape(-1, block_bytes)
    values = np.empty((len(blocks), block), np.float32)
    step = _CHUNK // block
    for start in range(0, len(blocks), step):
        part = blocks[start : start + step]
        values[start : start + step] = dequantize(part.reshape(1, -1), kind).reshape(-1, block)
    return values.reshape(*raw.shape[:-1], raw.shape[-1] // block_bytes * block)
