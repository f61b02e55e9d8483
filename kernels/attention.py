"""Attention by heads over cached keys and values, its softmax online over KV tiles or by two passes.

llama.cpp `ggml_soft_max_ext` between two `ggml_mul_mat`.  A query head reads the keys of its KV head
(grouped-query attention, arXiv:2305.13245).
"""

from collections.abc import Set

import numpy as np

from . import cuda as gpu
from . import native
from .shares import share_out
from .softmax import Scored, Seen, empty_rows, online, seen_by, two_pass

HISTORY = (1, 2)  # inputs k and v hold every token so far, not only the ones of this step
QUERY_BLOCK = 128  # queries per block: keeps a block of scores inside the L2 cache
TILE = 128  # keys per tile of the online softmax
EXTRAS = ("scores", "probs", "m", "l", "m_tiles", "l_tiles")

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
    seen = seen_by(np.arange(keys - tokens, keys), keys, causal, window)
    compiled = native.takes(q, k, v, sinks)
    if compiled and softmax == "online":
        return _compiled(q, k, v, sinks, seen, scale, softcap, tile, want)
    results = _allocate(q.dtype, tokens, heads, dim, keys, tile, want)
    grouped = {name: _group_heads(name, array, kv_heads) for name, array in results.items()}
    k_heads, v_heads = k.transpose(1, 2, 0), v.transpose(1, 0, 2)
    attend = {"online": online, "two-pass": two_pass}[softmax]
    if compiled:  # two passes over the very scores that the online softmax has
        scores = _compiled(q, k, v, sinks, seen, scale, softcap, tile, {"scores"})["scores"]
        scores = _group_heads("scores", scores, kv_heads)

    def attend_to(rows: slice) -> None:
        seen_here = seen[0][rows], seen[1][rows]
        if compiled:
            scored: Scored = iter([(slice(keys), scores[:, :, rows], seen_here)])
        else:
            # [kv_head, group * query, dim]: one product serves all the query heads of a KV head
            block = (q[rows] * q.dtype.type(scale)).reshape(-1, kv_heads, group, dim).transpose(1, 2, 0, 3)
            scored = _score_tiles(block, k_heads, seen_here, softcap, tile)
        start_of_rows = empty_rows(q.dtype, kv_heads, group, len(seen_here[0]), sinks)
        views = {name: _rows(name, a, rows) for name, a in grouped.items()}
        attend(scored, v_heads, views, keys, tile, *start_of_rows)

    share_out(attend_to, tokens, QUERY_BLOCK)
    return results


def _compiled(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    sinks: np.ndarray | None,
    seen: Seen,
    scale: float,
    softcap: float | None,
    tile: int,
    want: Set[str],
) -> dict[str, np.ndarray]:
    """The online softmax in one call (attention.c); weights of a tile become probs by its maximum."""
    (tokens, heads, dim), (keys, kv_heads) = q.shape, k.shape[:2]
    made = {"out", "m", "l", *want} | ({"m_tiles"} if "probs" in want else set())
    results = _allocate(q.dtype, tokens, heads, dim, keys, tile, made)
    places = [results.get(name, np.empty(0, q.dtype)) for name in ("out", *EXTRAS)]
    options = (heads, kv_heads, min(tile, keys), scale, softcap or 0)
    native.LIBRARY.attend(q, k, v, sinks, *seen, options, *places)
    return {name: array for name, array in results.items() if name == "out" or name in want}


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


def _score_tiles(q: np.ndarray, k_heads: np.ndarray, seen: Seen, softcap: float | None, tile: int) -> Scored:
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
