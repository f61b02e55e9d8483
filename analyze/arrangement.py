"""Traces that hold the same numbers in another order: heads permuted, or the elements of RoPE pairs.

Scores are dot products, which no common permutation of the elements of q and k changes; nor does a
permutation of the heads matter, where the output projection has it too.  So an order is taken for the
engine's own, and undone, where one permutation explains all that was recorded of a layer's q, k, v and
attention, and where what comes after attention agrees.  Otherwise the difference stands.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from ..tracer.names import Key
from .fitted import PAIRED
from .mapped import give_back
from .sources import Arrange, Source

QUERY_HEADS = ("q", "q_norm", "q_rope", "attn", "scores", "probs", "m", "l", "m_tiles", "l_tiles")
KEY_HEADS = ("k", "k_norm", "k_rope", "v")
AFTER = ("attn_out", "attn_post_norm", "resid_mid", "resid_out")
SAMPLE = 4  # tokens that are looked at
ALIKE = 0.2  # NRMSE below which two tensors may be the same but for noise
LESS = 0.25  # of the difference that an order may leave


@dataclass(frozen=True)
class Order:
    """Which of the reference's elements and heads stand where ours has 0, 1, 2, ...; None: in place."""

    dims: np.ndarray | None = None
    heads: np.ndarray | None = None  # of queries
    kv_heads: np.ndarray | None = None

    def of(self, name: str) -> Arrange | None:
        """How a tensor of this name is to be put in order; None where it is."""
        heads = self.heads if name in QUERY_HEADS else self.kv_heads if name in KEY_HEADS else None
        dims = self.dims if name in PAIRED else None
        return None if heads is None and dims is None else Arrange(heads, dims)

    def __str__(self) -> str:
        parts = (("elements of RoPE pairs", self.dims), ("heads", self.heads), ("KV heads", self.kv_heads))
        return " and ".join(name for name, index in parts if index is not None)


def arrange(a: Source, b: Source, keys: Sequence[Key], common: int) -> Iterator[str]:
    """Put the reference in our order where it has another one; yields what a reader should know of it."""
    tokens = np.flatnonzero((a.row_of[:common] >= 0) & (b.row_of[:common] >= 0))
    tokens = tokens[np.linspace(0, len(tokens) - 1, min(SAMPLE, len(tokens))).astype(int)]
    found: dict[str, list[int]] = {}
    known: dict[str, Order] = {}
    by_layer: dict[int, list[Key]] = {}
    for key in keys:
        if key.layer is not None:
            by_layer.setdefault(key.layer, []).append(key)
    for layer, its in by_layer.items():
        if not len(tokens) or not _differ(a, b, its, tokens):
            continue
        order = _order(_Pairs(a, b, its, tokens), list(known.values()))
        if order is not None:
            known[str(order)] = order
            b.arranged |= {key: how for key in its if (how := order.of(key.name)) is not None}
            found.setdefault(str(order), []).append(layer)
    for what, layers in found.items():
        yield f"the reference has {what} in another order in {_count(layers)}: put in ours to be compared"


def _differ(a: Source, b: Source, keys: Sequence[Key], tokens: np.ndarray) -> bool:
    """A first look at one tensor of the query heads and one of the KV heads."""
    for names in (QUERY_HEADS, KEY_HEADS):
        key = next((key for key in keys if key.name in names and a.specs[key].joined), None)
        pair = [] if key is None else [_rows(source, key, tokens) for source in (a, b)]
        ours, theirs = pair or (None, None)
        if ours is not None and theirs is not None and not _apart(ours, theirs) < ALIKE:
            return True
    return False


def _count(layers: list[int]) -> str:
    return f"layer {layers[0]}" if len(layers) == 1 else f"{len(layers)} layers"


class _Pairs:
    """A sample of rows of both sides, by name [token, ...] in float64."""

    def __init__(self, a: Source, b: Source, keys: Iterable[Key], tokens: np.ndarray):
        self.heads: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self.after: list[tuple[np.ndarray, np.ndarray]] = []
        for key in keys:
            if key.name not in (*PAIRED, "v", "attn", *AFTER):
                continue
            ours, theirs = (_rows(source, key, tokens) for source in (a, b))
            if ours is None or theirs is None or not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
                continue
            if key.name in AFTER:
                self.after.append((ours, theirs))
            elif ours.shape == theirs.shape and ours.ndim == 3:
                self.heads[key.name] = ours, theirs

    @property
    def agree_after(self) -> bool:
        """Whether the first tensor after attention is the same."""
        return not self.after or _apart(*self.after[0]) < ALIKE


def _rows(source: Source, key: Key, tokens: np.ndarray) -> np.ndarray | None:
    if not source.specs[key].joined or not source.has(key)[source.step_of[tokens]].all():
        return None
    joined = source.joined(key)
    rows = joined[source.row_of[tokens]].astype(np.float64)
    give_back(joined)  # the pages around them were mapped, too
    return rows


def _apart(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b.reshape(a.shape))) / max(float(np.linalg.norm(b)), 1e-300)


def _order(pairs: _Pairs, known: Sequence[Order]) -> Order | None:
    """The order that explains every difference of a layer's heads; None where none is needed, or none does.

    One that is `known` of an earlier layer needs no agreement after attention.
    """
    before = {name: _apart(*pair) for name, pair in pairs.heads.items()}
    if all(apart < ALIKE for apart in before.values()):
        return None
    options = [*known, *(_orders(pairs.heads) if pairs.agree_after else ())]
    return next((order for order in options if _explains(order, pairs.heads, before)), None)


def _orders(heads: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Iterator[Order]:
    rotated = [pair for name, pair in heads.items() if name in PAIRED]
    orders = _element_orders(rotated[0][0].shape[2]) if rotated else [None]
    for dims, move_heads in product(orders, (False, True)):
        moved = [
            _head_order(heads, names, dims) if move_heads else None for names in (QUERY_HEADS, KEY_HEADS)
        ]
        if dims is not None or any(index is not None for index in moved):
            yield Order(dims, *moved)


def _element_orders(dim: int) -> list[np.ndarray | None]:
    """Pairs side by side or half a head apart."""
    if dim % 2:
        return [None]
    index = np.arange(dim)
    return [None, index.reshape(-1, 2).T.ravel(), index.reshape(2, -1).T.ravel()]


def _head_order(
    heads: Mapping[str, tuple[np.ndarray, np.ndarray]], names: Sequence[str], dims: np.ndarray | None
) -> np.ndarray | None:
    """For each of our heads the reference's that is nearest; None where it is its own, or two share one."""
    for name in names:
        if name in heads:
            a, b = heads[name]
            b = b[..., dims] if dims is not None and name in PAIRED else b
            apart = ((a[:, :, None] - b[:, None]) ** 2).sum((0, 3))
            nearest = apart.argmin(1)
            moved = not np.array_equal(nearest, np.arange(len(nearest)))
            return nearest if moved and len(set(nearest.tolist())) == len(nearest) else None
    return None


def _explains(
    order: Order, heads: Mapping[str, tuple[np.ndarray, np.ndarray]], before: Mapping[str, float]
) -> bool:
    for name, (a, b) in heads.items():
        how = order.of(name)
        apart = _apart(a, b if how is None else how(b, ("token", "head", "dim")))
        if apart > ALIKE or (before[name] > ALIKE and apart > LESS * before[name]):
            return False
    return True
