"""Whether each side's scores are the product of its own Q and K, recomputed in float64."""

from typing import NamedTuple

import numpy as np

from ..tracer.format import TensorSpec
from ..tracer.names import Key
from .align import Alignment
from .blocks import MASKED
from .mapped import give_back
from .sources import Source
from .wiring import Wiring

ELEMENTS = 1 << 18  # scores that are recomputed: a sample of queries beyond this


class Fit(NamedTuple):
    """Recorded scores against q·k: the best factor, and |scores - q·k| / |q·k| without and with it."""

    factor: float
    off: float
    residual: float


class Products(NamedTuple):
    """The fit of each side; None where it did not record q, k and scores."""

    a: Fit | None
    b: Fit | None


def products(alignment: Alignment, layer: int, step: int) -> Products:
    """Recompute scores of one of our steps, scaled and capped as the reference declares, for both sides."""
    key = Key(layer, "scores")
    view = next(alignment.views(key, step), None) if key in alignment.index else None
    if view is None or view.axes != ("head", "query", "key"):
        return Products(None, None)
    queries = slice(None, None, max(1, view.a.size // ELEMENTS))
    spec = alignment.b.specs[key]
    q, k = Wiring(alignment.a.specs, alignment.b.specs).inputs(key)
    tokens, keys = view.tokens[queries], view.a.shape[-1]
    fits = []
    for source, recorded in ((alignment.a, view.a), (alignment.b, view.b)):
        computed = _compute(source, spec, q, k, tokens, keys)
        fits.append(None if computed is None else _fit(recorded[:, queries].astype(np.float64), computed))
    return Products(*fits)


def _compute(
    source: Source, spec: TensorSpec, q: Key, k: Key, tokens: np.ndarray, keys: int
) -> np.ndarray | None:
    """scale q·k of `tokens` with the first `keys` keys [head, query, key]; None where they were not kept."""
    for key, needed in ((q, tokens), (k, np.arange(keys))):
        if key not in source.specs or source.specs[key].axes != ("token", "head", "dim"):
            return None
        rows = source.row_of[needed]
        if (rows < 0).any() or not source.has(key)[source.step_of[needed]].all():
            return None
    queries = source.joined(q)[source.row_of[tokens]].astype(np.float64)
    cached, rows = source.joined(k), source.row_of[:keys]
    heads, kv_heads = queries.shape[1], cached.shape[1]
    if heads % kv_heads or queries.shape[2] != cached.shape[2]:
        return None
    scores = np.empty((heads, len(tokens), keys))
    for head in range(heads):  # one at a time: all keys in float64 may be large
        scores[head] = queries[:, head] @ cached[rows, head // (heads // kv_heads)].astype(np.float64).T
    give_back(cached)
    scores *= _number(spec, "scale", queries.shape[2] ** -0.5)
    cap = _number(spec, "softcap", 0.0)
    return cap * np.tanh(scores / cap) if cap else scores


def _number(spec: TensorSpec, name: str, default: float) -> float:
    value = spec.conventions.get(name)
    return float(value) if isinstance(value, (int, float)) else default


def _fit(recorded: np.ndarray, computed: np.ndarray) -> Fit | None:
    seen = np.isfinite(recorded) & (recorded > MASKED) & np.isfinite(computed)
    x, y = recorded[seen], computed[seen]
    squares = float(y @ y)
    if not squares:
        return None
    factor = float(x @ y) / squares
    off, residual = (float(np.linalg.norm(x - f * y)) / squares**0.5 for f in (1.0, factor))
    return Fit(factor, off, residual)
