"""The structure of a trace file: every dataset contiguous, at its final size and place before the run."""

import json
import math
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import h5py
import numpy as np
from h5py import h5a, h5d, h5f, h5p, h5s, h5t

from .errors import TraceError
from .format import FORMAT, VERSION, Header, TensorSpec, h5_text, h5_type
from .layout import Layout

ALIGNMENT = 64  # bytes: memory-mapped arrays start on a cache line
PIECE_BYTES = 32  # longest token text kept beside a trace's tokens


@dataclass
class Slot:
    """Where a dataset begins in the file, and the bytes of one of its rows."""

    offset: int
    row_bytes: int


def create(path: Path, header: Header, tensors: Sequence[TensorSpec], layout: Layout) -> dict[str, Slot]:
    """Build the empty trace beside `path` and rename it into place; gives the slot of each dataset.

    TraceError where it cannot be written or would not fit on the disk.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    slots: dict[str, Slot] = {}
    try:
        access = h5p.create(h5p.FILE_ACCESS)
        access.set_libver_bounds(h5f.LIBVER_EARLIEST, h5f.LIBVER_V18)
        access.set_alignment(ALIGNMENT, ALIGNMENT)
        with h5py.File(h5f.create(os.fsencode(temporary), h5f.ACC_TRUNC, fapl=access)) as file:
            _create_root(file, header, tensors, layout, slots)
            for spec in tensors:
                for place in layout.datasets(spec):
                    slots[place.path] = _allocate(file, place.path, place.shape, spec.dtype, spec)
        _check_space(temporary)
        os.replace(temporary, path)
    except (OSError, RuntimeError, ValueError) as error:  # the three that h5py raises
        number = getattr(error, "errno", None)
        raise TraceError(f"cannot write {path}: {os.strerror(number) if number else error}") from error
    finally:
        with suppress(OSError):  # it was renamed, or never was
            temporary.unlink()
    return slots


def _create_root(
    file: h5py.File, header: Header, tensors: Sequence[TensorSpec], layout: Layout, slots: dict[str, Slot]
) -> None:
    attributes = header.to_attributes()
    file["prompt"] = h5_text(attributes.pop("prompt"))  # attributes end at 64 kB
    for name, value in {
        "format": FORMAT,
        "format_version": ".".join(map(str, VERSION)),
        **attributes,
    }.items():
        file.attrs[name] = h5_text(value)
    file["catalog"] = h5_text(json.dumps([spec.to_json() for spec in tensors]))
    file["recorded_tokens"] = layout.recorded
    for name in ("index", "start", "n_tokens", "kv_len"):
        file[f"steps/{name}"] = np.array([getattr(step, name) for step in layout.steps], np.int64)
    file["steps/phase"] = np.array([step.phase.encode() for step in layout.steps], "S8")
    new = sum(step.phase == "decode" for step in layout.steps) + 1
    for path, shape, dtype in (
        ("/steps/flushed", (len(layout.steps),), "uint8"),
        ("/steps/checksums", (len(layout.steps), len(tensors)), "uint64"),
        ("/complete", (1,), "uint8"),
        ("/tokens", (layout.n_tokens,), "int32"),
        ("/generated", (new,), "int32"),
        ("/pieces", (layout.n_tokens,), f"S{PIECE_BYTES}"),
    ):
        slots[path] = _allocate(file, path, shape, dtype)


def _allocate(
    file: h5py.File, path: str, shape: tuple[int, ...], dtype: str, spec: TensorSpec | None = None
) -> Slot:
    properties, links, kind = *_properties(), _type(dtype)
    identifier = h5d.create(file.id, path.encode(), kind, _space(shape), properties, lcpl=links)
    if spec is not None:
        _describe(identifier, spec, ("step", *spec.axes) if len(shape) > len(spec.axes) else spec.axes)
    # a dataset without elements has no place in the file
    return Slot(identifier.get_offset() or 0, math.prod(shape[1:]) * kind.get_size())


@cache
def _properties() -> tuple[h5p.PropDCID, h5p.PropLCID]:
    """How every dataset is created and linked."""
    properties, links = h5p.create(h5p.DATASET_CREATE), h5p.create(h5p.LINK_CREATE)
    properties.set_alloc_time(h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5d.FILL_TIME_NEVER)
    links.set_create_intermediate_group(True)
    return properties, links


def _describe(dataset: h5d.DatasetID, spec: TensorSpec, axes: tuple[str, ...]) -> None:
    """What the catalog says, once more where other tools show it.

    By HDF5's lowest calls: h5py's own way takes five times as long, and a trace has thousands of attributes.
    """
    labels, kind, space = _labels(axes)
    h5a.create(dataset, b"DIMENSION_LABELS", kind, space).write(labels)
    conventions = json.dumps(spec.conventions) if spec.conventions else ""
    for name, text in (
        (b"axes", ",".join(axes)),
        (b"op", spec.op),
        (b"source_name", spec.source),
        (b"conventions", conventions),
    ):
        if text:
            value, kind, space = _text(text)
            h5a.create(dataset, name, kind, space).write(value, kind)


# what the datasets of all layers have in common is made once


@cache
def _type(dtype: str) -> h5t.TypeID:
    return h5_type(dtype)


@lru_cache(64)
def _space(shape: tuple[int, ...]) -> h5s.SpaceID:
    return h5s.create_simple(shape)


@lru_cache(1024)
def _text(text: str) -> tuple[np.ndarray, h5t.TypeID, h5s.SpaceID]:
    """A text as HDF5 stores it: value, type and space."""
    value = h5_text(text)
    return value, h5t.py_create(h5py.string_dtype("utf-8", value.dtype.itemsize), logical=True), _scalar()


@cache
def _scalar() -> h5s.SpaceID:
    return h5s.create(h5s.SCALAR)


@cache
def _labels(axes: tuple[str, ...]) -> tuple[np.ndarray, h5t.TypeID, h5s.SpaceID]:
    """Dimension labels likewise; HDF5's own functions for them insist on variable-length strings."""
    kind = h5t.py_create(h5py.string_dtype(), logical=True)
    return np.array(axes, object), kind, _space((len(axes),))


def _check_space(temporary: Path) -> None:
    size, free = temporary.stat().st_size, shutil.disk_usage(temporary.parent).free
    if size > free:
        raise TraceError(
            f"the trace needs {size / 1e9:.2f} GB and {temporary.parent} has {free / 1e9:.2f} GB free: "
            "record fewer tensors (--tensors, --layers, --stats-only, --dtype f16) or free some space"
        )
