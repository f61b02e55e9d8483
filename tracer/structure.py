"""The structure of a trace file: every dataset contiguous, at its final size and place before the run."""

import json
import math
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import xxhash
from h5py import h5t

from .errors import TraceError
from .format import FORMAT, VERSION, Header, TensorSpec, h5_text, h5_type
from .hdf5 import Dataset, Laid, lay_out
from .layout import Layout, Place

ALIGNMENT = 64  # bytes: memory-mapped arrays start on a cache line
PIECE_BYTES = 32  # longest token text kept beside a trace's tokens
PLACES = "/places"  # where each dataset of a tensor begins, and a checksum of all bytes up to this one


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
    try:
        values, texts = _known(header, tensors, layout)
        datasets = _datasets(values, tensors, layout)
        laid = lay_out(datasets, texts, ALIGNMENT)
        _check_space(laid.size, path.parent)
        _write(temporary, laid, values, [at.path for spec in tensors for at in layout.datasets(spec)])
        os.replace(temporary, path)
    except (OSError, ValueError) as error:
        number = getattr(error, "errno", None)
        raise TraceError(f"cannot write {path}: {os.strerror(number) if number else error}") from error
    finally:
        with suppress(OSError):  # it was renamed, or never was
            temporary.unlink()
    return {
        name: Slot(laid.offsets[name], math.prod(dataset.shape[1:]) * dataset.itemsize)
        for name, dataset in datasets.items()
    }


def _known(
    header: Header, tensors: Sequence[TensorSpec], layout: Layout
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """What is known before the run: the root's datasets, and its attributes."""
    texts = {"format": FORMAT, "format_version": ".".join(map(str, VERSION)), **header.to_attributes()}
    values = {
        "/prompt": h5_text(texts.pop("prompt")),  # attributes end at 64 kB
        "/catalog": h5_text(json.dumps([spec.to_json() for spec in tensors])),
        "/recorded_tokens": layout.recorded,
        "/steps/phase": np.array([step.phase.encode() for step in layout.steps], "S8"),
    }
    for name in ("index", "start", "n_tokens", "kv_len"):
        values[f"/steps/{name}"] = np.array([getattr(step, name) for step in layout.steps], np.int64)
    return values, texts


def _datasets(
    values: dict[str, np.ndarray], tensors: Sequence[TensorSpec], layout: Layout
) -> dict[str, Dataset]:
    """Every dataset of the file by its path, in the order of the file."""
    places = [(spec, place) for spec in tensors for place in layout.datasets(spec)]
    new = sum(step.phase == "decode" for step in layout.steps) + 1
    found = {
        **{path: Dataset(_kind(value.dtype), value.shape) for path, value in values.items()},
        PLACES: Dataset(_kind("uint64"), (len(places) + 1,)),
        "/steps/flushed": Dataset(_kind("uint8"), (len(layout.steps),)),
        "/steps/checksums": Dataset(_kind("uint64"), (len(layout.steps), len(tensors))),
        "/complete": Dataset(_kind("uint8"), (1,)),
        "/tokens": Dataset(_kind("int32"), (layout.n_tokens,)),
        "/generated": Dataset(_kind("int32"), (new,)),
        "/pieces": Dataset(_kind(f"S{PIECE_BYTES}"), (layout.n_tokens,)),
    }
    for spec, place in places:
        if place.path in found:
            raise ValueError(f"{spec.key} would lie at {place.path}, where something else does")
        found[place.path] = _described(spec, place)
    return found


def _described(spec: TensorSpec, place: Place) -> Dataset:
    """A tensor's dataset: what the catalog says, once more where other tools show it."""
    axes = ("step", *spec.axes) if len(place.shape) > len(spec.axes) else spec.axes
    texts = {
        "axes": ",".join(axes),
        "op": spec.op,
        "source_name": spec.source,
        "conventions": json.dumps(spec.conventions) if spec.conventions else "",
    }
    stated = {name: text for name, text in texts.items() if text}
    return Dataset(_kind(spec.dtype), place.shape, stated, axes)


@cache
def _kind(dtype: str | np.dtype) -> bytes:
    """A type as a message of an object header has it."""
    kind = h5_type(dtype) if isinstance(dtype, str) else h5t.py_create(dtype, logical=True)
    return kind.encode()[2:]  # behind the numbers of what was encoded, and how


def _write(path: Path, laid: Laid, values: dict[str, np.ndarray], tensors: Sequence[str]) -> None:
    """Write the structure, what is known, and the places of the tensors' datasets in this order."""
    beginning = bytearray(laid.structure)
    noted = np.array([laid.offsets[name] for name in tensors], np.uint64)
    for name, value in {**values, PLACES: noted}.items():
        if value.size:
            beginning += bytes(laid.offsets[name] - len(beginning)) + value.tobytes()
    beginning += xxhash.xxh3_64_intdigest(beginning).to_bytes(8, "little")
    with path.open("wb") as file:
        file.write(beginning)
        file.truncate(laid.size)


def _check_space(size: int, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if size > free:
        raise TraceError(
            f"the trace needs {size / 1e9:.2f} GB and {folder} has {free / 1e9:.2f} GB free: "
            "record fewer tensors (--tensors, --layers, --stats-only, --dtype f16) or free some space"
        )
