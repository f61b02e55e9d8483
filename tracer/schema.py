"""The structure of a trace, worked out from the names and shapes of a dump: steps, axes, catalog."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from .axes import Arrangement, Heads, arrange, infer_heads
from .dump import Dump, Piece
from .errors import UserError
from .format import Step, TensorSpec, numpy_dtype
from .names import NAMES, Key, execution_order

_MAX_TOKENS = 1 << 24
_MAX_TABLE = 50_000_000  # steps times tensors: the table of checksums has an entry for each
_MAX_PRINTED_STEPS = 500  # whose sums fit into an attribute
_VARIABLE = ("token", "query", "key")  # axes that a step sizes


@dataclass(frozen=True)
class Placed:
    """A piece, the step that it belongs to, and how it becomes what the trace stores."""

    piece: Piece
    arrangement: Arrangement
    step: Step

    @property
    def is_last_rows(self) -> bool:
        """True where it has just the last rows of its step: engines leave out those that nobody reads."""
        rows = self.arrangement.size("token")
        if rows is None or rows >= self.step.n_tokens:
            return False
        return rows == 1 or self.piece.conventions.get("rows") == "last"

    def stored_positions(self, flat: Sequence[int]) -> list[int]:
        """Flat positions in the source's array as those in what the trace stores of the step."""
        made, tokens = self.arrangement, self.step.n_tokens
        sizes = {"token": tokens, "query": tokens, "key": self.step.kv_len}
        shape = tuple(sizes.get(axis, size) for axis, size in zip(made.axes, made.shape))
        places = np.unravel_index(np.asarray(flat, int), made.split)
        at = np.array([places[axis] for axis in made.order])
        if self.is_last_rows:
            at[0] += shape[0] - made.shape[0]
        kept = (at < np.array(shape)[:, None]).all(0)  # not in the padding of the key axis
        found: list[int] = np.ravel_multi_index(tuple(at[:, kept]), shape).tolist()
        return found


@dataclass(frozen=True)
class Schema:
    """Steps by the source's numbers, tensors in execution order, and the pieces of which they are made."""

    steps: dict[int, Step]
    specs: dict[Key, TensorSpec]
    placed: list[Placed]


def settle(dump: Dump, notes: list[str]) -> Schema:
    """The schema of `dump`; what a trace cannot hold is left out with a note.

    UserError where tensors of the vocabulary contradict each other.
    """
    stated = _stated_rows(dump)
    arranged = _arrange(dump, stated)
    counts = _row_counts(dump, arranged, stated)
    by_token = _token_first(dump.pieces, counts)
    found = [
        (piece, known or _own_axes(piece, counts[piece.step], piece.key in by_token))
        for piece, known in zip(dump.pieces, arranged)
    ]
    steps = _steps(dump, found, counts)
    odd = _left_out(found, notes)
    by_key: dict[Key, list[Placed]] = defaultdict(list)
    for piece, arrangement in found:
        if piece.key not in odd and piece.step in steps:
            by_key[piece.key].append(Placed(piece, arrangement, steps[piece.step]))
    if len(by_key) * len(steps) > _MAX_TABLE:
        raise UserError(f"{len(by_key)} tensors in {len(steps)} steps are no run of a model")
    specs = {key: _spec(by_key[key], dump.tile) for key in sorted(by_key, key=execution_order)}
    return Schema(steps, specs, [item for items in by_key.values() for item in items])


def _arrange(dump: Dump, tokens: dict[int, int | None]) -> list[Arrangement | None]:
    """The arrangement of each piece, with the numbers of heads that other pieces show."""

    def all_of(heads: Heads) -> list[Arrangement | None]:
        return [_arranged(piece, heads, tokens[piece.step]) for piece in dump.pieces]

    pairs = zip(dump.pieces, all_of(Heads()))
    shown = infer_heads((piece.key, arranged) for piece, arranged in pairs if arranged is not None)
    return all_of(dump.heads.or_else(shown))


_arrangement = lru_cache(1 << 16)(arrange)  # the same for every step of a size


def _arranged(piece: Piece, heads: Heads, tokens: int | None = None) -> Arrangement | None:
    try:
        return _arrangement(piece.key, piece.shape, piece.axes, heads, tokens)
    except UserError as error:
        raise UserError(f"{error} ({piece.source or 'unnamed'}, step {piece.step})") from None


def _stated_rows(dump: Dump) -> dict[int, int | None]:
    """Tokens of each step, ascending: as the source says, else as the plain [token, …] tensors show."""
    told = {number for number, info in dump.steps.items() if info.n_tokens or info.tokens}
    counts: dict[int, int | None] = dict.fromkeys(sorted(told | {piece.step for piece in dump.pieces}))
    for number in counts:
        info = dump.step(number)
        counts[number] = info.n_tokens or len(info.tokens) or None
    for piece in dump.pieces:
        name = NAMES.get(piece.key.name)
        if piece.step not in told and name and len(name.axes) == 2 and name.axes[0] == "token":
            found = _arranged(piece, Heads())
            counts[piece.step] = max(counts[piece.step] or 0, (found and found.rows) or 0) or None
    return counts


def _row_counts(
    dump: Dump, arranged: Sequence[Arrangement | None], stated: dict[int, int | None]
) -> dict[int, int]:
    """Tokens of each step; where nothing said so until now, as the other tensors show."""
    counts = {number: count or 0 for number, count in stated.items()}
    for piece, found in zip(dump.pieces, arranged):
        if not stated[piece.step]:
            counts[piece.step] = max(counts[piece.step], (found and found.rows) or 0)
    for piece in dump.pieces:  # none of our names: the first axis of the others must do
        counts[piece.step] = counts[piece.step] or (piece.shape[0] if len(piece.shape) > 1 else 1) or 1
    return counts


def _without_batch(shape: tuple[int, ...], rows: int) -> tuple[int, ...]:
    return shape[1:] if len(shape) > 2 and shape[0] == 1 and shape[1] == rows else shape


def _token_first(pieces: Iterable[Piece], counts: dict[int, int]) -> set[Key]:
    """The tensors that have a row for each token in every step."""
    keys = {piece.key for piece in pieces}
    for piece in pieces:
        shape = _without_batch(piece.shape, counts[piece.step])
        if not shape or shape[0] != counts[piece.step]:
            keys.discard(piece.key)
    return keys


def _own_axes(piece: Piece, rows: int, by_token: bool) -> Arrangement:
    """Axes for a name outside the vocabulary."""
    shape = _without_batch(piece.shape, rows) or (1,)
    axes = [f"axis{index}" for index in range(len(shape))]
    if by_token:
        axes[0] = "token"
    return Arrangement(tuple(axes), shape, shape, tuple(range(len(shape))))


def _left_out(found: Iterable[tuple[Piece, Arrangement]], notes: list[str]) -> set[Key]:
    """Tensors that a trace cannot hold: without elements, or of other names with a shape that changes."""
    forms: dict[Key, set[tuple[Any, ...]]] = defaultdict(set)
    why: dict[Key, str] = {}
    for piece, arranged in found:
        fixed = [size for axis, size in zip(arranged.axes, arranged.shape) if axis not in _VARIABLE]
        forms[piece.key].add((arranged.axes, *fixed))
        if 0 in arranged.shape:
            why[piece.key] = "it has no elements"
        elif len(forms[piece.key]) > 1 and piece.key.name not in NAMES:
            why[piece.key] = "its shape changes from step to step"
    layers: dict[tuple[str, str], list[Key]] = defaultdict(list)
    for key in sorted(why, key=execution_order):
        layers[key.name, why[key]].append(key)
    for (name, reason), keys in layers.items():
        which = str(keys[0]) if len(keys) == 1 else f"{name} of {len(keys)} layers"
        notes.append(f"left out {which}: {reason}")
    return set(why)


def _steps(dump: Dump, found: Iterable[tuple[Piece, Arrangement]], counts: dict[int, int]) -> dict[int, Step]:
    shown = {
        piece.step: arranged.size("key") or 0
        for piece, arranged in found
        if "key" in arranged.axes and not arranged.padded
    }
    steps: dict[int, Step] = {}
    end = kept = 0
    for number, count in counts.items():
        start = dump.step(number).start
        if start is None:
            start = shown[number] - count if number in shown else end
        end = start + count
        if not dump.keeps(number):
            continue
        if start < kept:
            raise UserError(
                f"step {number} starts at position {start}, where {kept} tokens were seen already: "
                "import one sequence at a time (choose its steps with --steps)"
            )
        if not 0 < count <= end <= _MAX_TOKENS:
            raise UserError(f"step {number} has {count} tokens from position {start}: no context is so")
        phase = "decode" if count == 1 and steps else "prefill"
        steps[number] = Step(len(steps), phase, start, count)
        kept = end
    return steps


def _spec(items: list[Placed], tile: int | None) -> TensorSpec:
    """The catalog entry of a tensor; UserError where its pieces do not fit together or their steps."""
    first = items[0]
    sizes = {
        axis: size
        for axis, size in zip(first.arrangement.axes, first.arrangement.shape)
        if axis not in _VARIABLE
    }
    if "tile" in sizes:
        sizes["tile"] = _tile_width(items, tile)
    dtype = first.piece.dtype
    conventions: dict[str, Any] = {}
    for item in items:
        dtype = _wider(dtype, item.piece.dtype)
        conventions |= item.piece.conventions
        if item.is_last_rows:
            conventions |= {"partial": True, "rows": "last"}
    if "key" in first.arrangement.axes or conventions.get("partial"):
        dtype = _floating(dtype)  # what is not there is NaN
    spec = TensorSpec(
        first.piece.key,
        first.arrangement.axes,
        sizes,
        dtype,
        first.piece.op,
        source=first.piece.source[:1000],
        conventions=conventions | _printed(items),
    )
    _check_pieces(items, spec)
    return spec


def _printed(items: Iterable[Placed]) -> dict[str, dict[str, Any]]:
    """What a log says of whole tensors, by the number of the step."""
    per_step: dict[str, dict[str, Any]] = defaultdict(dict)
    for item in items:
        for name, value in item.piece.printed.items():
            if len(per_step[name]) < _MAX_PRINTED_STEPS:
                told = item.stored_positions(value) if name == "nan" else value
                per_step[name][str(item.step.index)] = told
    return dict(per_step)


def _check_pieces(items: Iterable[Placed], spec: TensorSpec) -> None:
    seen: dict[int, Piece] = {}
    for item in items:
        piece, step = item.piece, item.step
        if step.index in seen:
            raise UserError(
                f"{seen[step.index]} comes again as {piece.source or 'unnamed'}: announce each forward pass "
                "as a step, or give the two different names"
            )
        seen[step.index] = piece
        if not _fits(item, spec):
            raise UserError(
                f"{piece} has shape {item.arrangement.shape} with the axes "
                f"[{', '.join(item.arrangement.axes)}]; the step has {step.n_tokens} tokens from position "
                f"{step.start}, so [{', '.join(spec.axes)}] would be {spec.shape(step.n_tokens, step.kv_len)}"
            )


def _fits(item: Placed, spec: TensorSpec) -> bool:
    if item.arrangement.axes != spec.axes:
        return False
    expected = spec.shape(item.step.n_tokens, item.step.kv_len)
    return all(
        size == wanted
        or (axis == "key" and item.arrangement.padded and size > wanted)
        or (axis == "token" and item.is_last_rows)
        for axis, size, wanted in zip(spec.axes, item.arrangement.shape, expected)
    )


def _tile_width(items: Iterable[Placed], stated: int | None) -> int:
    """Keys of one tile of the online softmax: as stated, else a power of two that gives as many tiles."""
    shown = [(item.step.kv_len, item.arrangement.size("tile")) for item in items]
    for width in (stated,) if stated else (1 << bits for bits in range(25, -1, -1)):
        if all(-(-keys // width) == count for keys, count in shown):
            return width
    keys, count = shown[0]
    raise UserError(f"{count} tiles for {keys} keys: state how many keys a tile has (tile = …)")


def _wider(a: str, b: str) -> str:
    return a if a == b else np.promote_types(numpy_dtype(a), numpy_dtype(b)).name


def _floating(dtype: str) -> str:
    """The type itself, or for integers one that has a NaN."""
    return "float64" if numpy_dtype(dtype).kind in "iu" else dtype
