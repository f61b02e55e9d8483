"""Rewriting a finished trace: shorter after an early end of the text, or compressed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
from h5py import h5s

from .errors import TraceError
from .structure import PLACES
from .trace import Trace
from .writer import TraceWriter

BLOCK = 1 << 20  # bytes: about a chunk


def shorten(path: Path, n_steps: int) -> None:
    """Drop the steps from `n_steps` on, which a run planned and did not need, so that shapes are exact."""
    with _replacing(path) as temporary, Trace(path) as trace:
        steps = trace.steps[:n_steps]
        recorded = trace.recorded[trace.recorded < steps[-1].kv_len]
        specs = list(trace.tensors.values())
        with TraceWriter(temporary, trace.header, specs, steps, recorded=recorded) as writer:
            writer.write_tokens(0, trace.tokens, trace.pieces)
            for index, token in enumerate(trace.generated):
                writer.write_generated(index, int(token))
            for step in steps:
                for key in trace.tensors:
                    if trace.has(key, step.index):
                        writer.write_recorded(step.index, key, trace.read(key, step.index))
                writer.end_step(step.index)
            writer.finish()


def compress(path: Path, level: int = 1) -> None:
    """Rewrite a finished trace with shuffled, deflated chunks.

    Activations in float32 shrink to about 0.85 of their size, and a compressed trace cannot be
    memory-mapped: comparing it costs several times as much.
    """
    with _replacing(path) as temporary:
        try:
            with (
                h5py.File(path, "r") as source,
                h5py.File(temporary, "w", libver=("earliest", "v108")) as target,
            ):
                _copy_attributes(source, target)
                source.visititems(lambda name, item: _copy_item(name, item, source, target, level))
        except (OSError, RuntimeError) as error:
            raise TraceError(f"cannot compress {path}, which stays as it is: {error}") from error


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A file beside `path` that takes its place at the end, and vanishes where something fails."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _copy_attributes(source: h5py.HLObject, target: h5py.HLObject) -> None:
    for name, value in source.attrs.items():
        target.attrs.create(name, value, dtype=source.attrs.get_id(name).dtype)


def _copy_item(name: str, item: h5py.HLObject, source: h5py.File, target: h5py.File, level: int) -> None:
    if not isinstance(item, h5py.Dataset) or name == PLACES.strip("/"):  # these are no longer there
        return
    if item.nbytes < 4096 or not name.startswith(("layers/", "embd", "final_norm", "logits")):
        source.copy(item, target, name)
        return
    rows = min(item.shape[0], max(1, BLOCK * item.shape[0] // item.nbytes))
    copy = target.create_dataset(
        name,
        item.shape,
        item.id.get_type(),
        chunks=(rows, *item.shape[1:]),
        compression="gzip",
        compression_opts=level,
        shuffle=True,
    )
    _copy_attributes(item, copy)
    for first in range(0, item.shape[0], rows):
        _copy_rows(item, copy, first, min(rows, item.shape[0] - first))


def _copy_rows(source: h5py.Dataset, target: h5py.Dataset, first: int, count: int) -> None:
    """Copy rows as raw bits: HDF5's own conversion of bfloat16 is slow."""
    kind, shape = source.id.get_type(), (count, *source.shape[1:])
    space, memory = source.id.get_space(), h5s.create_simple(shape)
    space.select_hyperslab((first, *(0 for _ in shape[1:])), shape)
    raw = np.empty(shape, f"V{kind.get_size()}")
    source.id.read(memory, space, raw, kind)
    target.id.write(memory, space, raw, kind)
