"""Softmax attention, as online softmax over KV tiles or as plain two-pass softmax.

The online form (Milakov & Gimelshein 2018, arXiv:1805.02867; FlashAttention, arXiv:2205.14135) walks the
keys tile by tile and keeps per query a running maximum m and a running sum l = sum(exp(score - m)); when
a tile raises m, what was summed so far is multiplied by exp(m_old - m_new).  m and l are results here, after
each tile and at the end, because a wrong merge shows in them first.
"""

# ruff: noqa: E741 - l is the field's name for the softmax sum

from collections.abc import Iterator, Set

import numpy as np

from . import cuda as gpu
from . import native
from .shares import share_out

HISTORY = (1, 2)  # inputs k and v hold every token so far, not only the ones of this step
QUERY_BLOCK = 128  # queries per block: keeps a block of scores inside the L2 cache
TILE = 128  # keys per tile of the online softmax
EXTRAS = ("scores", "probs", "m", "l", "m_tiles", "l_tiles")
Seen = tuple[np.ndarray, np.ndarray]  # int32 [query]: the first key that it sees, and the one after the last

MERGED = 4096  # of attention_decode.cu
MAX_DIM = 256  # head size of the CUDA kernels
BLOCKS = {64: (64, 64), 128: (64, 64), 256: (32, 32)}  # head size rounded up -> queries, keys of a block
EXPRESSIONS = {
    "attention.cu": [
        f"attention_prefill<{t}, {dim}, {queries}, {keys}>"
        for t in gpu.STORAGE.values()
        for dim, (queries, keys) in BLOCKS.items()
    ],
    "attention_decode.cu": [f"attention_decode<{t}>" for t in gpu.STORAGE.values()],
}
PROBLEM = np.dtype(  # struct Problem of attention.cuh
    [(n, "i4") for n in ("tokens", "heads", "kv_heads", "dim", "max_keys", "tile", "causal", "window")]
    + [("scale", "f4"), ("softcap", "f4")]
)


def cpu(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    sinks: np.ndarray | None = None,
    *,
    scale: float,
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    softmax: str = "online",
    tile: int = TILE,
    want: Set[str] = frozenset(),
) -> dict[str, np.ndarray]:
    """q [token, head, dim], k and v [key, kv_head, dim]; the queries are the last tokens of the keys.

    Query head h reads KV head h // (heads / kv_heads).  A query at position p sees keys p - window < j <= p.
    Returns `out` [token, head, dim] and, of those named in `want`: `scores` [head, query, key] as softmax
    sees them (scaled, capped, -inf where masked), `probs` of the same shape, `m` and `l` [head, query], and
    `m_tiles`, `l_tiles` [tile, head, query], the running state after each tile of keys.

    `sinks` [head] are scores of a key without a value (arXiv:2309.17453): m and l begin with them.
    """
    tokens, heads, dim = q.shape
    keys, kv_heads = k.shape[:2]
    group = heads // kv_heads
    alone = tokens == 1 and native.takes(q, k, v, sinks)
    if alone and softmax == "online":
        return _one_token(q, k, v, sinks, scale, window, softcap, tile, want)
    results = _allocate(q.dtype, tokens, heads, dim, keys, tile, want)
    grouped = {name: _group_heads(name, array, kv_heads) for name, array in results.items()}
    k_heads, v_heads = k.transpose(1, 2, 0), v.transpose(1, 0, 2)
    attend = {"online": _online, "two-pass": _two_pass}[softmax]

    def attend_to(rows: slice) -> None:
        positions = np.arange(keys - tokens + rows.start, keys - tokens + rows.stop)
        # [kv_head, group * query, dim]: one product serves all the query heads of a KV head
        block = (q[rows] * q.dtype.type(scale)).reshape(-1, kv_heads, group, dim).transpose(1, 2, 0, 3)
        scored = _score_tiles(block, k_heads, _seen(positions, keys, causal, window), softcap, tile)
        if alone:  # the very scores that the online softmax has
            whole = _one_token(q, k, v, sinks, scale, window, softcap, keys, {"scores"})["scores"]
            every = np.zeros(1, np.intc), np.full(1, keys, np.intc)
            scored = iter([(slice(keys), whole.reshape(kv_heads, group, 1, keys), every)])
        start_of_rows = _empty_rows(q.dtype, kv_heads, group, len(positions), sinks)
        views = {name: _rows(name, a, rows) for name, a in grouped.items()}
        attend(scored, v_heads, views, keys, tile, *start_of_rows)

    share_out(attend_to, tokens, QUERY_BLOCK)
    return results


def _one_token(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    sinks: np.ndarray | None,
    scale: float,
    window: int | None,
    softcap: float | None,
    tile: int,
    want: Set[str],
) -> dict[str, np.ndarray]:
    """The online softmax of a token that sees all keys, or the last `window`, in one call (attention.c)."""
    (_, heads, dim), keys = q.shape, len(k)
    first = 0 if window is None else max(keys - window, 0)
    results = _allocate(q.dtype, 1, heads, dim, keys, tile, frozenset(EXTRAS))
    options = (k.shape[1], tile, first, scale, softcap or 0)
    native.LIBRARY.attend(q, k, v, sinks, options, *results.values())
    return {name: array for name, array in results.items() if name == "out" or name in want}


def _empty_rows(
    dtype: np.dtype, kv_heads: int, group: int, queries: int, sinks: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """m and l [kv_head, group, query, 1] of rows that have seen no key, but for a sink."""
    m = np.full((kv_heads, group, queries, 1), -np.inf, dtype)
    l = np.zeros_like(m)
    if sinks is not None:
        m[...], l[...] = sinks.reshape(kv_heads, group, 1, 1), 1
    return m, l


def _allocate(
    dtype: np.dtype, tokens: int, heads: int, dim: int, keys: int, tile: int, want: Set[str]
) -> dict[str, np.ndarray]:
    shapes = shape((tokens, heads, dim), (keys,), tile=tile)
    return {name: np.empty(shapes[name], dtype) for name in ("out", *EXTRAS) if name == "out" or name in want}


def _group_heads(name: str, array: np.ndarray, kv_heads: int) -> np.ndarray:
    """View the head axis as [kv_head, group], in front of (tile and) query; writes go to `array`."""
    if name == "out":
        tokens, heads, dim = array.shape
        return array.reshape(tokens, kv_heads, heads // kv_heads, dim).transpose(1, 2, 0, 3)
    axis = 1 if name.endswith("_tiles") else 0
    heads = array.shape[axis]
    return array.reshape(*array.shape[:axis], kv_heads, heads // kv_heads, *array.shape[axis + 1 :])


def _rows(name: str, array: np.ndarray, rows: slice) -> np.ndarray:
    """The queries `rows` of a grouped result."""
    return array[:, :, :, rows] if name.endswith("_tiles") else array[:, :, rows]


def _seen(positions: np.ndarray, keys: int, causal: bool, window: int | None) -> Seen:
    """The keys that each query sees: the first, and the one after the last."""
    last = np.minimum(positions + 1, keys) if causal else np.full(len(positions), keys)
    first = np.zeros(len(positions), int) if window is None else np.maximum(positions - window + 1, 0)
    return first.astype(np.intc), np.maximum(first, last).astype(np.intc)


def _score_tiles(
    q: np.ndarray, k_heads: np.ndarray, seen: Seen, softcap: float | None, tile: int
) -> Iterator[tuple[slice, np.ndarray | None, Seen]]:
    """Yield (keys, scores [kv_head, group, query, key], which of them each query sees).

    Masked keys have scores here, too; None stands for those of a tile that no query sees.
    """
    kv_heads, group, queries, dim = q.shape
    rows = q.reshape(kv_heads, group * queries, dim)
    keys = k_heads.shape[2]
    for start in range(0, keys, tile):
        span = slice(start, min(start + tile, keys))
        first, last = (np.minimum(np.maximum(edge - start, 0), span.stop - start) for edge in seen)
        if not (first < last).any():
            yield span, None, (first, last)
            continue
        scores = (rows @ k_heads[:, :, span]).reshape(kv_heads, group, queries, -1)
        if softcap is not None:
            scores = np.tanh(scores / q.dtype.type(softcap)) * q.dtype.type(softcap)
        yield span, scores, (first, last)


def _hide(scores: np.ndarray, seen: Seen) -> None:
    """Put -inf in the place of masked keys."""
    first, last = seen
    keys = scores.shape[-1]
    if first.any() or (last < keys).any():
        key = np.arange(keys)
        np.copyto(scores, -np.inf, where=(key < first[:, None]) | (key >= last[:, None]))


def _online(
    scored: Iterator[tuple[slice, np.ndarray | None, Seen]],
    v_heads: np.ndarray,
    results: dict[str, np.ndarray],
    keys: int,
    tile: int,
    m: np.ndarray,
    l: np.ndarray,
) -> None:
    out = results["out"]
    kv_heads, group, queries, _ = out.shape
    acc = np.zeros(out.shape, out.dtype)
    fold = _fold_compiled if native.takes(acc) else _fold
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


def _fold(
    scores: np.ndarray, seen: Seen, m: np.ndarray, l: np.ndarray, kept: np.ndarray | None
) -> np.ndarray:
    """Take a tile of keys into the softmax: scores become exp(score - m), m and l the state after the tile.

    `kept` takes the scores as softmax sees them.  Gives the factor for what was summed up before.
    """
    _hide(scores, seen)
    if kept is not None:
        kept[...] = scores
    before = m.copy()
    np.maximum(m, scores.max(-1, keepdims=True), out=m)
    np.exp(np.subtract(scores, _finite(m), out=scores), out=scores)
    shrink = np.exp(before - _finite(m))
    l *= shrink
    l += scores.sum(-1, keepdims=True)
    return shrink


def _fold_compiled(
    scores: np.ndarray, seen: Seen, m: np.ndarray, l: np.ndarray, kept: np.ndarray | None
) -> np.ndarray:
    """The same in one pass (softmax.c)."""
    shrink = np.empty_like(m)
    native.LIBRARY.fold(scores, m, l, shrink, *seen, kept)
    return shrink


def _finite(m: np.ndarray) -> np.ndarray:
    """The maximum, or 0 where a row has seen no key yet."""
    return np.where(m == -np.inf, 0, m)


def _two_pass(
    scored: Iterator[tuple[slice, np.ndarray | None, Seen]],
    v_heads: np.ndarray,
    results: dict[str, np.ndarray],
    keys: int,
    tile: int,
    first_m: np.ndarray,
    first_l: np.ndarray,
) -> None:
    out = results["out"]
    kv_heads, group, queries, _ = out.shape
    scores = np.full((kv_heads, group, queries, keys), -np.inf, out.dtype)
    for span, part, seen in scored:
        if part is not None:
            _hide(part, seen)
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


def cuda(
    q: gpu.Array,
    k: gpu.Array,
    v: gpu.Array,
    sinks: gpu.Array | None = None,
    *,
    scale: float,
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    softmax: str = "online",
    tile: int = TILE,
    want: Set[str] = frozenset(),
    kv_len: gpu.Array | None = None,
    out: dict[str, gpu.Array] | None = None,
) -> dict[str, gpu.Array]:
    """As `cpu` with online softmax, on the GPU; sinks are float32, and so is at every storage type all
    but `out`.

    With `kv_len`, int32 [1] on the GPU, k and v are caches [max_len, kv_head, dim] of which the first kv_len
    keys are in use: results are sized for max_len and only what kv_len reaches is written.  `out` is what
    `cuda_outputs` gives for these shapes; a decode step with it neither allocates nor depends on the host.
    """
    tokens, heads, dim = q.shape
    max_keys, kv_heads = k.shape[:2]
    if softmax != "online":
        raise ValueError(f"the CUDA kernels do online softmax, not {softmax}")
    if dim > MAX_DIM:
        raise ValueError(f"head size {dim}: the CUDA kernels go up to {MAX_DIM}")
    out = cuda_outputs(q.shape, k.shape, tile=tile, want=want, dtype=q.dtype) if out is None else out
    problem = np.array(
        (
            *(tokens, heads, kv_heads, dim, max_keys, tile, causal),
            np.iinfo(np.int32).max if window is None else window,
            scale,
            softcap or 0.0,
        ),
        PROBLEM,
    )
    results = (out[name] if name in want else None for name in EXTRAS)
    args = (q, k, v, sinks, kv_len, out["out"], *results, problem)
    if tokens > 1:
        _prefill(q, args)
    else:
        _decode(q, args, out["workspace"], max_keys, kv_heads, tile)
    return {name: array for name, array in out.items() if name == "out" or name in want}


def cuda_outputs(
    q: tuple[int, ...], k: tuple[int, ...], *, tile: int = TILE, want: Set[str] = frozenset(), dtype: np.dtype
) -> dict[str, gpu.Array]:
    """Arrays for `cuda(..., out=...)` with q and k of these shapes, and the workspace of a single query."""
    shapes = shape(q, k, tile=tile)
    arrays = {name: gpu.empty(shapes[name], np.float32) for name in EXTRAS if name in want}
    arrays["out"] = gpu.empty(shapes["out"], dtype)
    if q[0] == 1:
        heads, dim, kv_heads = *q[1:], k[1]
        size = _chunks(k[0], kv_heads, tile)[1] * heads * (dim + 2) + kv_heads
        arrays["workspace"] = gpu.zeros((size,), np.float32)
    return arrays


def _prefill(q: gpu.Array, args: tuple[object, ...]) -> None:
    tokens, heads, dim = q.shape
    padded = next(size for size in BLOCKS if dim <= size)
    queries, keys = BLOCKS[padded]
    shared = 4 * ((queries + keys) * (padded + 4) + queries * (keys + 4))
    expression = f"attention_prefill<{gpu.storage(q)}, {padded}, {queries}, {keys}>"
    grid, block = (gpu.cdiv(tokens, queries), heads), (queries * 4,)
    gpu.launch("attention.cu", expression, grid, block, *args, shared=shared)


def _decode(
    q: gpu.Array, args: tuple[object, ...], workspace: gpu.Array, max_keys: int, kv_heads: int, tile: int
) -> None:
    _, heads, dim = q.shape
    group = heads // kv_heads
    chunk, chunks = _chunks(max_keys, kv_heads, tile)
    merged = max(1, min(group, MERGED // chunks)) * 2 * (chunks + 1)
    shared = 4 * max((group + 32) * (4 * gpu.cdiv(dim, 4) + 4) + group * chunk, merged)
    finished = workspace[-kv_heads:].view(np.int32)
    args = (*args, np.int32(chunk), workspace, finished)
    expression = f"attention_decode<{gpu.storage(q)}>"
    gpu.launch("attention_decode.cu", expression, (chunks, kv_heads), (128,), *args, shared=shared)


def _chunks(max_keys: int, kv_heads: int, tile: int) -> tuple[int, int]:
    """Keys of a block and blocks per KV head, for a single query: about 256 blocks, two for each SM."""
    chunk = min(tile, 32 * gpu.cdiv(max_keys * kv_heads, 32 * 256))
    return chunk, max_keys // tile * gpu.cdiv(tile, chunk) + gpu.cdiv(max_keys % tile, chunk)


def shape(
    q: tuple[int, ...], k: tuple[int, ...], *_: object, tile: int = TILE, **__: object
) -> dict[str, tuple[int, ...]]:
    tokens, heads, dim = q
    keys, tiles = k[0], -(-k[0] // tile)
    return {
        "out": (tokens, heads, dim),
        "scores": (heads, tokens, keys),
        "probs": (heads, tokens, keys),
        "m": (heads, tokens),
        "l": (heads, tokens),
        "m_tiles": (tiles, heads, tokens),
        "l_tiles": (tiles, heads, tokens),
    }


def flops(q: tuple[int, ...], k: tuple[int, ...], *_: object, **__: object) -> int:
    return 4 * q[0] * q[1] * q[2] * k[0]
