"""A trace from tensors whose names, shapes and steps are known only once all of them were seen.

Two passes over what a source has: the first looks at names and shapes alone and settles the steps and the
structure of the file (schema.py), the second loads one tensor after the other and writes it.  What is in
memory at a time is one tensor and what the writer has not written yet.
"""

import os
import platform
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np

from .axes import ROTATED, interleaved
from .dump import Dump
from .errors import UserError
from .format import Header, TensorSpec, numpy_dtype
from .names import NAMES, Key
from .schema import Placed, Schema, settle
from .writer import TraceWriter

UNKNOWN_TOKEN = -1  # stored where a source does not tell the ids
_CHUNK = 1 << 16  # tokens written at once


@dataclass(frozen=True)
class Assembled:
    """What became of a dump."""

    path: Path
    tensors: int
    steps: int
    bytes_written: int
    own_names: tuple[str, ...]  # names outside the vocabulary, kept as they are
    end: str  # how the source ended where that was not regular
    notes: tuple[str, ...]


def assemble(dump: Dump, path: Path | str) -> Assembled:
    """Write the trace of `dump`; UserError, and no file, where its tensors contradict each other.

    Where the source did not end regularly the trace holds what there is and does not count as complete.
    """
    path, notes = Path(path), list(dump.notes)
    schema = settle(dump, notes)
    if not schema.specs:
        why = (notes or [dump.end or "no tensor was found"])[0]
        advice = "; --map tells which of ours your names are" if notes else ""
        raise UserError(f"nothing to import: {why}{advice}")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.import")
    try:
        written = _write(temporary, dump, schema)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(FileNotFoundError):  # it was renamed
            temporary.unlink()
    own = tuple(dict.fromkeys(key.name for key in schema.specs if key.name not in NAMES))
    return Assembled(path, len(schema.specs), len(schema.steps), written, own, dump.end, tuple(notes))


def _header(dump: Dump) -> Header:
    return replace(
        dump.header,
        host=dump.header.host or platform.platform(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        tool_version=version("tensortrace"),
    )


def _write(path: Path, dump: Dump, schema: Schema) -> int:
    by_step: dict[int, list[Placed]] = defaultdict(list)
    for item in schema.placed:
        by_step[item.step.index].append(item)
    steps, specs = list(schema.steps.values()), list(schema.specs.values())
    recorded = [token for step in steps for token in range(step.start, step.kv_len)]
    turned = _turned(specs) if dump.half_split else set()
    with TraceWriter(path, _header(dump), specs, steps, recorded=recorded) as writer:
        _write_tokens(writer, dump, schema)
        for step in steps:
            for item in by_step[step.index]:
                key = item.piece.key
                values = _load(item, schema.specs[key])
                writer.write(step.index, key, interleaved(values) if key in turned else values)
            writer.end_step(step.index)
        if not dump.end:
            writer.finish()
    return writer.bytes_written


def _turned(specs: Iterable[TensorSpec]) -> set[Key]:
    """The tensors whose elements go from transformers' order into GGUF's."""
    rotated = [spec for spec in specs if spec.key.name in ROTATED]
    for spec in rotated:
        if spec.axes[-2:] != ("head", "dim") or spec.sizes["dim"] % 2:
            raise UserError(f"--half-split: {spec.key} has no heads of an even size: give --model or --heads")
    if not rotated:
        raise UserError("--half-split: there is no Q or K to put into another order")
    return {spec.key for spec in rotated}


def _write_tokens(writer: TraceWriter, dump: Dump, schema: Schema) -> None:
    """The ids as far as they are known.  What a decode step feeds is what was generated before it."""
    total = max(step.kv_len for step in writer.steps)
    for first in range(0, total, _CHUNK):
        writer.write_tokens(first, [UNKNOWN_TOKEN] * min(_CHUNK, total - first))
    generated = []
    for number, step in schema.steps.items():
        ids = dump.step(number).tokens or dump.tokens[step.start : step.kv_len]
        if ids and len(ids) != step.n_tokens:
            raise UserError(f"step {number} has {step.n_tokens} tokens and {len(ids)} ids")
        if ids:
            writer.write_tokens(step.start, ids)
        if step.phase == "decode":
            generated.append(ids[0] if ids else UNKNOWN_TOKEN)
    for index, token in enumerate([*generated, UNKNOWN_TOKEN]):
        writer.write_generated(index, token)


def _load(item: Placed, spec: TensorSpec) -> np.ndarray:
    """The values as the trace stores them: rows and keys as the step has them."""
    values = item.arrangement.apply(np.asarray(item.piece.load()))
    shape = spec.shape(item.step.n_tokens, item.step.kv_len)
    if "key" in spec.axes:
        values = values[tuple(map(slice, shape))]
    values = values.astype(numpy_dtype(spec.dtype), copy=False)
    if values.shape == shape:
        return values
    full = np.full(shape, np.nan, values.dtype)
    full[-len(values) :] = values
    return full
