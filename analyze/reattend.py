"""Attention from its scores on: for causes that change scores, probs or how they are summed."""

# ruff: noqa: E741 - l is the field's name for the softmax sum

from collections.abc import Callable, Set
from typing import NamedTuple

import numpy as np

from ..kernels.attention import TILE
from ..tracer.graph import Compute


class Scored(NamedTuple):
    """Attention with its scores computed: scores [head, query, key], v [key, kv_head, dim], sinks [head]."""

    scores: np.ndarray
    v: np.ndarray
    want: Set[str]
    tile: int = TILE
    sinks: np.ndarray | None = None

    @property
    def m(self) -> np.ndarray:
        """The maximum of each row [head, query]."""
        top = self.scores.max(-1)
        return top if self.sinks is None else np.maximum(top, self.sinks[:, None])

    @property
    def p(self) -> np.ndarray:
        """exp(score - m), of the scores' shape."""
        return np.exp(self.scores - finite(self.m)[..., None])

    def pick(self, results: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What is wanted of the results."""
        return {name: array for name, array in results.items() if name in self.want}


def rescored(change: Callable[..., np.ndarray]) -> Callable[[Compute], Compute]:
    """A wrap of attention whose scores pass through `change(scores, q, k)` before softmax."""

    def rest(scored: Scored, q: np.ndarray, k: np.ndarray) -> dict[str, np.ndarray]:
        scores = change(scored.scores, q, k).astype(q.dtype, copy=False)
        return attended(scored._replace(scores=scores))

    return _wrapped(rest)


def merged(change: Callable[[Scored], dict[str, np.ndarray]]) -> Callable[[Compute], Compute]:
    """A wrap of attention that gets its results from `change(scored)`."""
    return _wrapped(lambda scored, q, k: change(scored))


def _wrapped(rest: Callable[..., dict[str, np.ndarray]]) -> Callable[[Compute], Compute]:
    def wrap(compute: Compute) -> Compute:
        def attend(q, k, v, *sinks, want: Set[str] = frozenset(), **params):
            scores = compute(q, k, v, *sinks, want={"scores"}, **params)["scores"]
            return rest(Scored(scores, v, want, params.get("tile", TILE), *sinks), q, k)

        return attend

    return wrap


def attended(scored: Scored, extra: float | np.ndarray = 0.0) -> dict[str, np.ndarray]:
    """What attention gives: `out` and what is wanted.

    `extra` [head, query] is added to l: keys that count in the sum but have no value.
    """
    p, m = scored.p, scored.m
    l = p.sum(-1) + extra
    if scored.sinks is not None:
        l = l + np.exp(scored.sinks[:, None] - m)
    probs = p / l[..., None]
    results = {"scores": scored.scores, "m": m, "l": l, "probs": probs}
    if {"m_tiles", "l_tiles"} & set(scored.want):
        results |= _running(scored)
    return scored.pick(results) | {"out": weighted(probs, scored.v)}


def _running(scored: Scored) -> dict[str, np.ndarray]:
    m, l = [], []
    for end in range(scored.tile, scored.scores.shape[-1] + scored.tile, scored.tile):
        head = scored._replace(scores=scored.scores[..., :end], v=scored.v[:end], want={"l"})
        m.append(head.m)
        l.append(attended(head)["l"])
    return {"m_tiles": np.stack(m), "l_tiles": np.stack(l)}


def longer(scored: Scored, scores: np.ndarray, v: np.ndarray) -> dict[str, np.ndarray]:
    """What attention gives with more keys: `scores` [head, query, more] and their values; cut to its own."""
    keys = scored.scores.shape[-1]
    more = scored._replace(
        scores=np.concatenate([scored.scores, scores], -1), v=np.concatenate([scored.v, v])
    )
    made = attended(more)
    for name in {"scores", "probs"} & set(made):
        made[name] = made[name][..., :keys]
    for name in {"m_tiles", "l_tiles"} & set(made):
        made[name] = made[name][: -(-keys // scored.tile)]
    return made


def finite(m: np.ndarray) -> np.ndarray:
    """A maximum that can be subtracted, also in a row that sees no key."""
    return np.where(np.isneginf(m), 0, m)


def weighted(probs: np.ndarray, v: np.ndarray) -> np.ndarray:
    """probs [head, query, key] times v [key, kv_head, dim] -> [query, head, dim]."""
    heads, queries, keys = probs.shape
    grouped = probs.reshape(v.shape[1], -1, keys) @ v.transpose(1, 0, 2)
    return grouped.reshape(heads, queries, -1).transpose(1, 0, 2).astype(v.dtype).copy()
