"""Attention from its scores on: for causes that change scores, probs or how they are summed."""

# ruff: noqa: E741 - l is the field's name for the softmax sum

from collections.abc import Callable, Set

import numpy as np

from ..kernels.attention import TILE
from ..tracer.graph import Compute

Change = Callable[..., np.ndarray]


def rescored(change: Change) -> Callable[[Compute], Compute]:
    """A wrap of attention whose scores pass through `change(scores, q, k)` before softmax."""

    def wrap(compute: Compute) -> Compute:
        def attend(q, k, v, *rest, want: Set[str] = frozenset(), **params):
            right = compute(q, k, v, *rest, want={"scores"}, **params)["scores"]
            scores = change(right, q, k).astype(q.dtype, copy=False)
            return from_scores(scores, v, want, params.get("tile", TILE))

        return attend

    return wrap


def merged(change: Callable[..., dict[str, np.ndarray]]) -> Callable[[Compute], Compute]:
    """A wrap of attention that gets its results from `change(scores, v, want, tile)`."""

    def wrap(compute: Compute) -> Compute:
        def attend(q, k, v, *rest, want: Set[str] = frozenset(), **params):
            scores = compute(q, k, v, *rest, want={"scores"}, **params)["scores"]
            return change(scores, v, want, params.get("tile", TILE))

        return attend

    return wrap


def from_scores(
    scores: np.ndarray, v: np.ndarray, want: Set[str], tile: int = TILE, extra: float | np.ndarray = 0.0
) -> dict[str, np.ndarray]:
    """What attention gives for scores [head, query, key] and v [key, kv_head, dim]; `out` and what is wanted.

    `extra` [head, query] is added to l: keys that count in the sum but have no value.
    """
    m = scores.max(-1)
    p = np.exp(scores - finite(m)[..., None])
    l = p.sum(-1) + extra
    probs = p / l[..., None]
    results = {"scores": scores, "m": m, "l": l, "probs": probs}
    if {"m_tiles", "l_tiles"} & set(want):
        results |= _running(scores, tile)
    return pick(results, want) | {"out": weighted(probs, v)}


def _running(scores: np.ndarray, tile: int) -> dict[str, np.ndarray]:
    ends = range(tile, scores.shape[-1] + tile, tile)
    m = [scores[..., :end].max(-1) for end in ends]
    l = [np.exp(scores[..., :end] - finite(top)[..., None]).sum(-1) for end, top in zip(ends, m)]
    return {"m_tiles": np.stack(m), "l_tiles": np.stack(l)}


def pick(results: dict[str, np.ndarray], want: Set[str]) -> dict[str, np.ndarray]:
    return {name: array for name, array in results.items() if name in want}


def finite(m: np.ndarray) -> np.ndarray:
    """A maximum that can be subtracted, also in a row that has seen no key."""
    return np.where(np.isneginf(m), 0, m)


def weighted(probs: np.ndarray, v: np.ndarray) -> np.ndarray:
    """probs [head, query, key] times v [key, kv_head, dim] -> [query, head, dim]."""
    heads, queries, keys = probs.shape
    grouped = probs.reshape(v.shape[1], -1, keys) @ v.transpose(1, 0, 2)
    return grouped.reshape(heads, queries, -1).transpose(1, 0, 2).astype(v.dtype).copy()
