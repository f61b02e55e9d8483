"""`.ttr`: the raw stream that the C header and the Python recorder write (docs/stream.md)."""

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ..axes import Heads
from ..dump import Dump, Piece, StepInfo
from ..importer import Options, header_of, number_steps
from ..stream import MAGIC, Stream, StreamTensor, read_stream
from ..translate import translate

FORMAT = "ttr"
SUMMARY = "raw stream of tensortrace.h or of the Python recorder"


def sniff(path: Path, head: bytes) -> bool:
    return head.startswith(MAGIC)


def read(path: Path, options: Options) -> Dump:
    return dump_of(read_stream(path))


def dump_of(stream: Stream) -> Dump:
    """The tensors of a stream, its steps as announced; without any, a name that comes again begins one."""
    meta = stream.meta
    pieces = [_piece(stream, tensor) for tensor in stream.tensors]
    header = replace(
        header_of(meta, "unknown"),
        settings=_json(meta, "settings"),
        hyperparameters=_json(meta, "hyperparameters"),
    )
    return Dump(
        pieces if stream.steps else number_steps(pieces),
        {step.index: StepInfo(len(step.tokens) or None, step.start, step.tokens) for step in stream.steps},
        header,
        Heads(_count(meta, "heads"), _count(meta, "kv_heads")),
        _count(meta, "tile"),
        stream.end,
    )


def _piece(stream: Stream, tensor: StreamTensor) -> Piece:
    target = translate(tensor.name, tensor.layer)
    return Piece(
        tensor.step,
        target.key,
        tensor.shape,
        tensor.dtype,
        partial(stream.load, tensor),
        tensor.axes or target.axes,
        tensor.source or (tensor.name if tensor.name != target.key.name else ""),
    )


def _count(meta: Mapping[str, str], name: str) -> int | None:
    text = meta.get(name, "")
    return int(text) or None if text.isdecimal() and len(text) < 10 else None


def _json(meta: Mapping[str, str], name: str) -> dict[str, Any]:
    """A dictionary among the facts; empty where there is none that can be read."""
    try:
        value = json.loads(meta.get(name, "{}"))
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
