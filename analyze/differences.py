"""What differs between two traces before any number is looked at: shapes, models, what was recorded."""

from collections.abc import Collection, Iterable, Iterator

import numpy as np

from ..tracer.format import ROW_AXES, Header, TensorSpec
from ..tracer.names import Key, execution_order
from ..tracer.text import visible
from .partial import is_partial
from .sources import Source

SHOWN = 4  # names listed before "and so on"


def comparable(a: Source, b: Source) -> tuple[list[Key], dict[Key, str]]:
    """The keys that can be compared, in execution order, and why others of the same name cannot.

    The order is that of our catalog; an importer's, which does not say what an op reads, need not be in
    order and goes by the vocabulary.
    """
    common = [key for key in a.specs if key in b.specs]
    if not any(a.specs[key].inputs for key in common):
        common.sort(key=execution_order)
    problems = {key: why for key in common if (why := _misfit(a, b, key)) is not None}
    return [key for key in common if key not in problems], problems


def _misfit(a: Source, b: Source, key: Key) -> str | None:
    x, y = a.specs[key], b.specs[key]
    if row_axis(x) is None or row_axis(y) is None:
        return "a tensor without a token axis"
    if "." in key.name and (is_partial(x) or is_partial(y)):
        return "statistics of all values, where a log shows some"
    if x.axes == y.axes and x.sizes == y.sizes:
        over_keys = not x.joined and x.axes[-1] in ("stat", "bin")
        if over_keys and [s.kv_len for s in a.steps] != [s.kv_len for s in b.steps]:
            return "statistics over keys, of steps that see different numbers of keys"
        return None
    same_rows = x.joined and y.joined and _row_size(x) == _row_size(y)
    heads = {spec.sizes["head"] for spec in (x, y) if "head" in spec.sizes}
    if same_rows and len(heads) < 2:
        return None  # one engine keeps [token, head, dim], the other [token, head * dim]
    return f"ours is {_shape(x)}, the reference's {_shape(y)}"


def row_axis(spec: TensorSpec) -> int | None:
    """The place of the axis that counts tokens."""
    return next((place for place, axis in enumerate(spec.axes) if axis in ROW_AXES), None)


def _row_size(spec: TensorSpec) -> int:
    return int(np.prod([spec.sizes[axis] for axis in spec.axes[1:]]))


def _shape(spec: TensorSpec) -> str:
    grows = (*ROW_AXES, "key")
    parts = (axis if axis in grows else f"{axis} {spec.sizes[axis]}" for axis in spec.axes)
    return visible(" x ".join(parts))


def notes(a: Source, b: Source, problems: dict[Key, str]) -> Iterator[str]:
    """Plain sentences on everything that a reader of the comparison should know."""
    yield from _models(a.trace.header, b.trace.header)
    for side, source, other in (("ours", a, b), ("the reference", b, a)):
        yield from _recorded(side, source, other)
    for why in dict.fromkeys(problems.values()):
        names = _listed(dict.fromkeys(key.name for key, reason in problems.items() if reason == why))
        yield f"{names} cannot be compared: {why}"


def _models(a: Header, b: Header) -> Iterator[str]:
    if a.architecture and b.architecture and a.architecture != b.architecture:
        ours, theirs = visible(a.architecture), visible(b.architecture)
        yield f"the architectures differ: ours {ours}, the reference {theirs}"
    if a.model_sha256 and b.model_sha256 and a.model_sha256 != b.model_sha256:
        ours, theirs = visible(a.model_sha256[:8]), visible(b.model_sha256[:8])
        yield f"the model files differ (SHA-256 {ours}… and {theirs}…): differences may come from the weights"
    for name in sorted(a.hyperparameters.keys() & b.hyperparameters.keys()):
        values = a.hyperparameters[name], b.hyperparameters[name]
        if values[0] != values[1]:
            yield visible(f"hyperparameter {name}: ours {values[0]!r}, the reference {values[1]!r}")


def _recorded(side: str, source: Source, other: Source) -> Iterator[str]:
    trace = source.trace
    if not trace.complete:
        yield f"the recording of {side} is incomplete: {len(source.steps)} of {len(trace.steps)} steps"
    kept = int((source.row_of >= 0).sum())
    if kept < len(source.row_of):
        yield f"{side} recorded {kept} of {len(source.row_of)} tokens"
    alone = [key for key in source.specs if key not in other.specs]
    layers = {key.layer for key in alone if key.layer is not None} - {key.layer for key in other.specs}
    if layers:
        yield f"only {side} has {'layer' if len(layers) == 1 else 'layers'} {_ranges(layers)}"
    names = dict.fromkeys(key.name for key in alone if key.layer not in layers)
    if names:
        yield f"only {side} has {_listed(names)}"


def nothing_in_common(a: Source, b: Source, problems: dict[Key, str]) -> str:
    """Why there is nothing to compare, in a sentence."""
    if problems:
        key, why = next(iter(problems.items()))
        return f"no tensor has the same shape in both: {visible(str(key))}, for one: {why}"
    common = [key for key in a.specs if key in b.specs]
    if common:
        names = _listed(dict.fromkeys(key.name for key in common))
        return f"both hold {names}, but no token of them was recorded in both"
    held = [_listed(dict.fromkeys(key.name for key in source.specs)) or "no tensors" for source in (a, b)]
    return f"the traces have no tensor in common: ours holds {held[0]}, the reference {held[1]}"


def _listed(names: Iterable[str]) -> str:
    shown = [visible(name, 32) for name in names]
    more = len(shown) - SHOWN
    return ", ".join(shown[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def _ranges(numbers: Collection[int]) -> str:
    """{0, 1, 2, 5} as 0-2, 5."""
    ordered = sorted(numbers)
    edges = [i for i, n in enumerate(ordered) if i == 0 or n != ordered[i - 1] + 1]
    parts = [ordered[i:j] for i, j in zip(edges, [*edges[1:], len(ordered)])]
    return ", ".join(f"{p[0]}-{p[-1]}" if len(p) > 1 else f"{p[0]}" for p in parts)
