"""Bringing an array, as some engine lays it out, into the axes that our vocabulary gives its name.

A source names its axes slowest first.  `head*dim` is one axis that holds both, `key+` an axis that is
longer than the keys that exist (cut when the step is known), `batch` in front one of size 1 that goes away
and may be missing.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from .errors import UserError
from .format import ROW_AXES
from .names import NAMES, Key

_QUERY_NAMES = ("q", "q_norm", "q_rope", "attn", "scores", "probs", "m", "l", "m_tiles", "l_tiles")
_KEY_NAMES = ("k", "k_norm", "k_rope", "v")
ROTATED = ("q", "k", "q_norm", "k_norm", "q_rope", "k_rope")  # whose elements are in an order that RoPE minds


@dataclass(frozen=True)
class Heads:
    """How many query heads and key/value heads a model has; None where nothing tells."""

    query: int | None = None
    key: int | None = None

    def of(self, name: str) -> int | None:
        """The heads of the tensor called `name`."""
        return self.query if name in _QUERY_NAMES else self.key if name in _KEY_NAMES else None

    def or_else(self, other: "Heads") -> "Heads":
        return Heads(self.query or other.query, self.key or other.key)


@dataclass(frozen=True)
class Arrangement:
    """How an array becomes ours: reshaped to `split`, then its axes put into `order`."""

    axes: tuple[str, ...]
    shape: tuple[int, ...]
    split: tuple[int, ...]
    order: tuple[int, ...]
    padded: bool = False  # the key axis may be longer than the keys that exist

    def apply(self, array: np.ndarray) -> np.ndarray:
        return array.reshape(self.split).transpose(self.order)

    def size(self, *names: str) -> int | None:
        """The size of the first axis that has one of the names; None without such an axis."""
        return next((size for axis, size in zip(self.axes, self.shape) if axis in names), None)

    @property
    def rows(self) -> int | None:
        return self.size(*ROW_AXES)


def arrange(
    key: Key, shape: Sequence[int], axes: Sequence[str], heads: Heads, tokens: int | None = None
) -> Arrangement | None:
    """The arrangement of a tensor; None for one of an unknown name whose axes nobody stated.

    `tokens` is how many its step has, where that is known: it tells [1, token, head*dim] from one token's
    [1, head, dim].  Raises UserError where the shape does not fit the axes.
    """
    shape = tuple(shape)
    known = NAMES[key.name].axes if key.name in NAMES else ()
    stated = tuple(axes) or _guess(known, shape, heads.of(key.name), tokens)
    if stated is None:
        expected = ", ".join(known)
        raise UserError(f"{key} has the axes [{expected}]; an array of shape {shape} does not fit them")
    if not stated:
        return None
    if stated[0] == "batch" and len(stated) == len(shape) + 1:
        stated = stated[1:]
    if len(stated) != len(shape):
        raise UserError(f"{key} has shape {shape} and is said to have the axes [{', '.join(stated)}]")
    names, sizes = _split(key, stated, shape, heads.of(key.name))
    if set(known) - set(names) == {"token"}:  # one row whose token axis was squeezed away
        names, sizes = ["token", *names], [1, *sizes]
    if "token" in names and {"query", "key", "tile"} & set(names):
        raise UserError(
            f"{key} is said to have the axes [{', '.join(stated)}]: beside them tokens are called query"
        )
    target = _target(names, known)
    order = tuple(names.index(name) for name in target)
    return Arrangement(target, tuple(sizes[i] for i in order), tuple(sizes), order, "key+" in stated)


def _guess(
    known: tuple[str, ...], shape: tuple[int, ...], heads: int | None, tokens: int | None
) -> tuple[str, ...] | None:
    """The axes of an array of a name whose own axes are `known`, from its shape; None where it fits none."""
    if not known:
        return ()
    merged = (*known[:-2], "head*dim") if known[-2:] == ("head", "dim") else known
    if len(shape) == len(known):
        batch = merged != known and shape[:2] == (1, tokens) and heads != shape[1]
        return ("batch", *merged) if batch else known
    if len(shape) == len(merged):
        one_row = heads == shape[0] and shape[1] % heads != 0
        return known[1:] if one_row else merged
    if len(shape) > len(merged) and shape[0] == 1:
        rest = _guess(known, shape[1:], heads, tokens)
        return None if rest is None else ("batch", *rest)
    return merged[1:] if len(shape) == len(merged) - 1 and known[0] == "token" else None


def _split(
    key: Key, axes: tuple[str, ...], shape: tuple[int, ...], heads: int | None
) -> tuple[list[str], list[int]]:
    """The axes one by one, without `batch`, and their sizes."""
    names: list[str] = []
    sizes: list[int] = []
    for axis, size in zip(axes, shape):
        parts = axis.removesuffix("+").split("*")
        if parts == ["head", "dim"] and heads is None:
            parts = ["dim"]  # nothing tells how many heads share the axis
        if parts == ["batch"] and size != 1:
            raise UserError(f"{key} has shape {shape}, a batch of {size}: record one sequence at a time")
        if parts == ["head", "dim"] and heads and size % heads == 0:
            names += parts
            sizes += [heads, size // heads]
        elif len(parts) > 1:
            raise UserError(f"{key} has shape {shape}: an axis of {size} does not hold {heads} heads")
        elif parts != ["batch"]:
            names += parts
            sizes.append(size)
    if len(set(names)) < len(names) or not all(names):
        raise UserError(f"{key} is said to have the axes [{', '.join(axes)}]: each needs a name of its own")
    return names, sizes


def _target(names: list[str], known: tuple[str, ...]) -> tuple[str, ...]:
    """The order in which a trace stores the axes: the vocabulary's, else tokens first."""
    if set(names) == set(known):
        return known
    return tuple(sorted(names, key=lambda name: name != "token"))


def infer_heads(arrangements: Iterable[tuple[Key, Arrangement]]) -> Heads:
    """The numbers of heads that tensors with a head axis show."""
    query = key = None
    for tensor, arrangement in arrangements:
        count = arrangement.size("head")
        if count and tensor.name in _QUERY_NAMES:
            query = query or count
        elif count and tensor.name in _KEY_NAMES:
            key = key or count
    return Heads(query, key)


def interleaved(half_split: np.ndarray) -> np.ndarray:
    """Q or K [..., dim] with the RoPE pairs (i, i + dim/2) in GGUF's order, where they are (2i, 2i + 1)."""
    *outer, dim = half_split.shape
    return half_split.reshape(*outer, 2, dim // 2).swapaxes(-1, -2).reshape(*outer, dim)
