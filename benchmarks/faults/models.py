"""The small models that faults are put into, by architecture or shape of one: `llama`, `llama/yarn`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from architecture import ARCHITECTURES, Shapes
from ggufs import write_gguf

LEAST = 3  # layers


def shape_of(place: str) -> dict[str, Any]:
    """Arguments of write_gguf for a model of three layers or more."""
    arch, _, name = place.partition("/")
    shapes = ARCHITECTURES[arch].shapes
    shape = shapes[name] if name else _grouped(shapes)
    return shape | {"layers": max(LEAST, shape.get("layers", 0))}


def _grouped(shapes: Shapes) -> dict[str, Any]:
    """The first shape with several query heads to each of several KV heads, or just the first."""
    able = (shape for shape in shapes.values() if 1 < shape.get("kv_heads", 2) < shape.get("heads", 4))
    return next(able, next(iter(shapes.values())))


def write(
    folder: Path, place: str, change: Callable[[dict[str, Any]], dict[str, Any]] = dict, name: str = ""
) -> Path:
    """A small model, written once; with `change` of its shape under a name of its own, each time."""
    path = folder / f"{name or place.replace('/', '-')}.gguf"
    if path.exists() and not name:
        return path
    return write_gguf(path, place.partition("/")[0], **change(shape_of(place)))
