"""Reading a trace: what was recorded, and its tensors as memory-mapped arrays."""

import json
import math
from collections.abc import Iterator
from functools import cached_property, lru_cache
from pathlib import Path
from types import TracebackType

import h5py
import numpy as np
import xxhash
from h5py import h5d, h5s

from .errors import TraceError
from .format import FORMAT, VERSION, Header, Step, TensorSpec, h5_type, numpy_dtype, read_text
from .layout import Layout, Place
from .names import Key
from .structure import PLACES

# what h5py, NumPy and json raise on bytes that are not what they should be
_DAMAGE = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


class Trace:
    """A trace file.

    `tensors` maps keys to specs in execution order; `steps` are all planned steps, `flushed` those that
    were written to the end.  Arrays are read-only views of the file wherever it is not compressed.
    Raises TraceError, in one line, for whatever is not a readable trace.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self._file = _open(self.path)
        try:
            self._read_structure()
        except _DAMAGE as error:
            self._file.close()
            raise TraceError(f"{self.path} is a damaged trace: {_one_line(error)}") from error
        except TraceError as error:
            self._file.close()
            raise TraceError(f"{self.path}: {error}") from None

    def _read_structure(self) -> None:
        attributes = {name: read_text(value) for name, value in self._file.attrs.items()}
        if attributes.get("format") != FORMAT:
            raise TraceError("an HDF5 file but not a trace: `trace record` writes one")
        _check_version(attributes.get("format_version", ""))
        self.header = Header.from_attributes({**attributes, "prompt": read_text(self._file["prompt"][()])})
        catalog = specs_of(self._file["catalog"][()])
        self.tensors = {spec.key: spec for spec in catalog}
        table = self._file["steps"]
        columns = (table[name][()].tolist() for name in ("index", "phase", "start", "n_tokens"))
        self.steps = [Step(i, phase.decode(), s, n) for i, phase, s, n in zip(*columns, strict=True)]
        self.recorded = self._file["recorded_tokens"][()]
        self._layout = Layout(self.steps, self.recorded)
        self.complete = bool(self._file["complete"][0])
        self._checksums = table["checksums"][()]
        self._flags = table["flushed"][()].astype(bool)
        if self._flags.shape != (len(self.steps),):
            raise ValueError("its step table does not fit its flags")
        if self._checksums.shape != (len(self.steps), len(catalog)) or len(self.tensors) != len(catalog):
            raise ValueError("its step table does not fit its catalog")
        self._column = {key: i for i, key in enumerate(self.tensors)}
        self._tokens, self._pieces, self._generated = (
            self._file[name][()] for name in ("tokens", "pieces", "generated")
        )
        if not len(self._tokens) == len(self._pieces) == self._layout.n_tokens:
            raise ValueError("its tokens do not fit its steps")
        self._kept = np.array([self._layout.rows(step.index) > 0 for step in self.steps], bool)
        self._written = np.ascontiguousarray((self._kept[:, None] & (self._checksums != 0)).T)
        self._datasets: dict[str, h5d.DatasetID | np.ndarray] = {}
        self._places = self._noted_places()

    def _noted_places(self) -> dict[str, int]:
        """Where each dataset begins, as the writer noted it: a twentieth of the time that asking HDF5 takes.

        Nothing where the file is not as it was written: the checksum is of its structure and all that was
        known before the run.
        """
        noted = self._file.get(PLACES)
        paths = [place.path for spec in self.tensors.values() for place in self._layout.datasets(spec)]
        if not isinstance(noted, h5py.Dataset) or noted.shape != (len(paths) + 1,):
            return {}
        *offsets, checksum = noted[()].tolist()
        end = (noted.id.get_offset() or 0) + 8 * len(paths)
        if xxhash.xxh3_64_intdigest(self._map[:end]) != checksum:
            return {}
        return dict(zip(paths, offsets))

    # ---- what was run

    @property
    def flushed(self) -> list[Step]:
        """The steps that were written completely."""
        return [step for step in self.steps if self._flags[step.index]]

    @cached_property
    def n_tokens(self) -> int:
        """Tokens fed to the model in flushed steps."""
        return max((step.kv_len for step in self.flushed), default=0)

    @cached_property
    def tokens(self) -> np.ndarray:
        """Ids fed to the model, prompt first [token]."""
        return self._tokens[: self.n_tokens]

    @cached_property
    def pieces(self) -> list[bytes]:
        """The text of each token fed (cut to 32 bytes)."""
        return self._pieces[: self.n_tokens].tolist()

    @cached_property
    def prompt_ids(self) -> np.ndarray:
        return self.tokens[: max((s.kv_len for s in self.flushed if s.phase == "prefill"), default=0)]

    @cached_property
    def generated(self) -> np.ndarray:
        """Ids that the model generated [new token]: one for the last prefill step and each decode step."""
        decodes = sum(step.phase == "decode" for step in self.flushed)
        done_prefill = all(self._flags[s.index] for s in self.steps if s.phase == "prefill")
        return self._generated[: decodes + 1 if done_prefill else 0]

    def __contains__(self, key: Key) -> bool:
        return key in self.tensors

    def has(self, key: Key, step: int) -> bool:
        """True where the tensor of that step was written (also in a step that a crash cut short)."""
        return key in self.tensors and bool(self.written(key)[step])

    def written(self, key: Key) -> np.ndarray:
        """In which steps a tensor of the catalog was written, as `has` says it [step]."""
        return self._written[self._column[key]]

    def rows(self, step: int) -> np.ndarray:
        """Token indices (over the whole run) of the rows that are recorded of a step."""
        return self._layout.tokens(step)

    # ---- tensors

    def read(self, key: Key, step: int) -> np.ndarray:
        """The tensor of one step, in the axes of its spec; TraceError where it was not recorded."""
        spec = self._spec(key)
        if not self.has(key, step):
            raise TraceError(f"{self.path}: {key} was not recorded in step {step}")
        array = self._stored(spec, step)
        return array[tuple(map(slice, self._layout.shape(spec, step)))]

    def rows_until(self, key: Key, step: int) -> np.ndarray:
        """All rows of a token-first tensor up to and including a step: what a KV cache holds then."""
        spec = self._spec(key)
        if not spec.joined:
            raise TraceError(f"{key} has no token axis to join steps on")
        place = self._layout.place(spec, step)
        return self._rows(spec, place._replace(first=0, rows=place.first + place.rows))

    def dataset(self, key: Key, step: int) -> np.ndarray | None:
        """The dataset that holds a tensor's step, with all others in it; None where it is not mapped."""
        spec = self._spec(key)
        place = self._layout.place(spec, step)
        self._rows(spec, place._replace(rows=0))  # opens it
        opened = self._datasets[place.path]
        return opened if isinstance(opened, np.ndarray) else None

    def damaged(self) -> Iterator[tuple[int, Key]]:
        """Every (step, tensor) whose bytes do not have the checksum that they were written with."""
        for step in self.steps:
            for key, spec in self.tensors.items():
                if self.has(key, step.index):
                    raw = np.ascontiguousarray(self._stored(spec, step.index)).reshape(-1).view(np.uint8)
                    expected = self._checksums[step.index, self._column[key]]
                    if (xxhash.xxh3_64_intdigest(raw) or 1) != expected:
                        yield step.index, key

    def _stored(self, spec: TensorSpec, step: int) -> np.ndarray:
        """The tensor of a step as it was written, with the padding of a decode step."""
        place = self._layout.place(spec, step)
        rows = self._rows(spec, place)
        return rows[0] if self._layout.is_padded(spec, step) else rows

    def _spec(self, key: Key) -> TensorSpec:
        try:
            return self.tensors[key]
        except KeyError:
            raise TraceError(f"{self.path} has no tensor {key}") from None

    @cached_property
    def _map(self) -> np.ndarray:
        return np.asarray(np.memmap(self.path, np.uint8, "r"))  # a plain array is quicker to take views of

    def _rows(self, spec: TensorSpec, place: Place) -> np.ndarray:
        """What lies there: mapped where the dataset is contiguous, read through HDF5 where it is not."""
        path, shape, first, count = place
        try:
            if path not in self._datasets:
                self._datasets[path] = self._open_dataset(path, shape, spec)
            dataset = self._datasets[path]
            if isinstance(dataset, np.ndarray):
                return dataset[first : first + count]
            return _read_filtered(dataset, numpy_dtype(spec.dtype), first, count)
        except _DAMAGE as error:
            raise TraceError(f"{self.path} is a damaged trace: {path}: {_one_line(error)}") from error

    def _open_dataset(
        self, path: str, shape: tuple[int, ...], spec: TensorSpec
    ) -> h5d.DatasetID | np.ndarray:
        dtype = numpy_dtype(spec.dtype)
        if path in self._places:
            return self._mapped(self._places[path], shape, dtype)
        dataset = h5d.open(self._file.id, path.encode())
        if dataset.shape != shape or dataset.get_type() != h5_type(spec.dtype):
            raise ValueError(f"{dataset.dtype} {dataset.shape} where the catalog has {spec.dtype} {shape}")
        offset = dataset.get_offset()
        return dataset if offset is None else self._mapped(offset, shape, dtype)

    def _mapped(self, offset: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        end = offset + math.prod(shape) * dtype.itemsize
        if end > len(self._map):
            raise ValueError(f"cut short: it ends at byte {end}, the file at {len(self._map)}")
        return self._map[offset:end].view(dtype).reshape(shape)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "Trace":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@lru_cache(2)  # the two traces of a comparison mostly have the same
def specs_of(catalog: bytes | str) -> tuple[TensorSpec, ...]:
    """What a catalog says of the tensors, in execution order; ValueError where it cannot be."""
    return tuple(map(TensorSpec.from_json, json.loads(catalog)))


def _read_filtered(dataset: h5d.DatasetID, dtype: np.dtype, first: int, count: int) -> np.ndarray:
    shape = (count, *dataset.shape[1:])
    raw = np.empty(shape, f"V{dtype.itemsize}")
    if raw.size:
        space = dataset.get_space()
        space.select_hyperslab((first, *(0 for _ in shape[1:])), shape)
        # read as the type that is stored: HDF5 converts bfloat16 by software at 0.02 GB/s
        dataset.read(h5s.create_simple(shape), space, raw, dataset.get_type())
    return raw.view(dtype)


def _open(path: Path) -> h5py.File:
    if not path.exists():
        raise TraceError(f"no such file: {path}")
    if path.is_dir():
        raise TraceError(f"{path} is a folder, not a trace: `trace import` makes one of a folder of dumps")
    try:
        return h5py.File(path, "r")
    except PermissionError:
        raise TraceError(f"{path}: permission denied") from None
    except _DAMAGE as error:
        raise TraceError(_why_not_hdf5(path, error)) from error


def _why_not_hdf5(path: Path, error: Exception) -> str:
    if not path.is_file():
        return f"{path} is not a regular file, so not a trace"
    with path.open("rb") as file:
        head = file.read(8)
    if not head:
        return f"{path} is empty: the recording did not get as far as creating it"
    if head.startswith(b"GGUF"):
        return f"{path} is a GGUF model, not a trace: record one with `trace record {path}`"
    if head == b"\x89HDF\r\n\x1a\n":
        return f"{path} is a truncated or damaged trace: {_one_line(error)}"
    return f"{path} is not a trace (not an HDF5 file): `trace import` reads other engines' dumps and logs"


def _one_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _check_version(version: str) -> None:
    major = version.split(".")[0]
    if not major.isdecimal():
        raise TraceError(f"a damaged trace: format version {version!r}")
    if int(major) > VERSION[0]:
        raise TraceError(
            f"trace format {version}, this program reads up to {VERSION[0]}.x: update tensortrace"
        )
