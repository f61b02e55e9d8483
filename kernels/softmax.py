"""Softmax over scores that come tile by tile: online, or by two passes over all of them.

The online form (Milakov & Gimelshein 2018, arXiv:1805.02867; FlashAttention, arXiv:2205.14135) walks the
keys tile by tile and keeps per query a running maximum m and a running sum l = sum(exp(score - m)); when
a tile raises m, what was summed so far is multiplied by exp(m_old - m_new).  m and l are results here, after
each tile and at the end, because a wrong merge shows in them first.
"""

# ruff: noqa: E741 - l is the field's name for the softmax sum

from collections.abc import Iterator

import numpy as np

Seen = tuple[np.ndarray, np.ndarray]  # int32 [query]: the first key that it sees, and the one after the last
# the keys of a tile, their scores [kv_head, group, query, key] (None: no query sees any), and who sees which
Scored = Iterator[tuple[slice, np.ndarray | None, Seen]]


def seen_by(positions: np.ndarray, keys: int, causal: bool, window: int | None) -> Seen:
    """The keys that each query sees: the first, and the one after the last."""
    last = np.minimum(positions + 1, keys) if causal else np.full(len(positions), keys)
    first = np.zeros(len(positions), int) if window is None else np.maximum(positions - window + 1, 0)
    return first.astype(np.intc), np.maximum(first, last).astype(np.intc)


def empty_rows(
    dtype: np.dtype, kv_heads: int, group: int, queries: int, sinks: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """m and l [kv_head, group, query, 1] of rows that have seen no key, but for a sink."""
    m = np.full((kv_heads, group, queries, 1), -np.inf, dtype)
    l = np.zeros_like(m)
    if sinks is not None:
        m[...], l[...] = sinks.reshape(kv_heads, group, 1, 1), 1
    return m, l


def hide(scores: np.ndarray, seen: Seen) -> None:
    """Put -inf in the place of masked keys."""
    first, last = seen
    keys = scores.shape[-1]
    if first.any() or (last < keys).any():
        key = np.arange(keys)
        np.copyto(scores, -np.inf, where=(key < first[:, None]) | (key >= last[:, None]))


def online(
    scored: Scored,
    v_heads: np.ndarray,
    results: dict[str, np.ndarray],
    keys: int,
    tile: int,
    m: np.ndarray,
    l: np.ndarray,
) -> None:
    """Fill in `results`, by name [kv_head, group, query, ...], with a running softmax over the tiles.

    `v_heads` [kv_head, key, dim]; m and l [kv_head, group, query, 1] are the state before the first tile.
    """
    out = results["out"]
    kv_heads, group, queries, _ = out.shape
    acc = np.zeros(out.shape, out.dtype)
    tops = []  # the maximum that each tile of `probs` was made with
    for index, (span, scores, seen) in enumerate(scored):
        kept = results["scores"][..., span] if "scores" in results else None
        if scores is not None:
            shrink = fold(scores, seen, m, l, kept)
            acc *= shrink
            acc += (scores.reshape(kv_heads, group * queries, -1) @ v_heads[:, span]).reshape(acc.shape)
        elif kept is not None:
            kept[...] = -np.inf
        if "probs" in results:
            results["probs"][..., span] = 0 if scores is None else scores
            tops.append((span, m.copy()))
        for name, state in (("m_tiles", m), ("l_tiles", l)):
            if name in results:
                results[name][index] = state[..., 0]
    np.divide(acc, l, out=out)
    for span, top in tops:
        results["probs"][..., span] *= np.exp(top - m) / l
    _finish(results, m, l)


def fold(scores: np.ndarray, seen: Seen, m: np.ndarray, l: np.ndarray, kept: np.ndarray | None) -> np.ndarray:
    """Take a tile of keys into the softmax: scores become exp(score - m), m and l the state after the tile.

    `kept` takes the scores as softmax sees them.  Gives the factor for what was summed up before.
    """
    hide(scores, seen)
    if kept is not None:
        kept[...] = scores
    before = m.copy()
    np.maximum(m, scores.max(-1, keepdims=True), out=m)
    np.exp(np.subtract(scores, _finite(m), out=scores), out=scores)
    shrink = np.exp(before - _finite(m))
    l *= shrink
    l += scores.sum(-1, keepdims=True)
    return shrink


def _finite(m: np.ndarray) -> np.ndarray:
    """The maximum, or 0 where a row has seen no key yet."""
    return np.where(m == -np.inf, 0, m)


def two_pass(
    scored: Scored,
    v_heads: np.ndarray,
    results: dict[str, np.ndarray],
    keys: int,
    tile: int,
    first_m: np.ndarray,
    first_l: np.ndarray,
) -> None:
    """The same by the textbook: the maximum of all scores first, then their exponentials and the sum."""
    out = results["out"]
    kv_heads, group, queries, _ = out.shape
    scores = np.full((kv_heads, group, queries, keys), -np.inf, out.dtype)
    for span, part, seen in scored:
        if part is not None:
            hide(part, seen)
            scores[..., span] = part
    m = np.maximum(scores.max(-1, keepdims=True), first_m)
    p = np.exp(scores - m)
    l = p.sum(-1, keepdims=True) + first_l * np.exp(first_m - m)
    p /= l
    out[...] = (p.reshape(kv_heads, group * queries, keys) @ v_heads).reshape(out.shape)
    for name, array in (("scores", scores), ("probs", p)):
        if name in results:
            results[name][...] = array
    for index, end in enumerate(range(tile, keys + tile, tile)):
        # a two-pass softmax has no running state: what it would be is told from the scores
        if "m_tiles" in results or "l_tiles" in results:
            head = scores[..., :end]
            m_tile = np.maximum(head.max(-1, keepdims=True), first_m)
            if "m_tiles" in results:
                results["m_tiles"][index] = m_tile[..., 0]
            if "l_tiles" in results:
                safe = np.where(np.isneginf(m_tile), 0, m_tile)  # a row whose window begins later
                sink = first_l * np.exp(first_m - safe)
                results["l_tiles"][index] = np.exp(head - safe).sum(-1) + sink[..., 0]
    _finish(results, m, l)


def _finish(results: dict[str, np.ndarray], m: np.ndarray, l: np.ndarray) -> None:
    for name, state in (("m", m), ("l", l)):
        if name in results:
            results[name][...] = state[..., 0]
