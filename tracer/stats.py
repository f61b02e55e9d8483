"""Per-row statistics in place of whole tensors (`--stats-only`), for runs too long to keep."""

import numpy as np

from .format import TensorSpec
from .names import Key

STATS = ("min", "max", "mean", "rms", "nan", "inf")
BINS = 48  # histogram of floor(log2 |x|), clipped to [-32, 15]; zeros fall into the first bin
LOWEST = -32
WHOLE = ("m", "l", "m_tiles", "l_tiles")  # already a number or two per row: kept as they are


def specs(spec: TensorSpec) -> list[TensorSpec]:
    """What `summarize` gives of a tensor, declared for a trace."""
    if spec.key.name in WHOLE:
        return [spec]
    rows = _row_axes(spec)
    kept = {axis: spec.sizes[axis] for axis in rows if axis == "head"}
    made = [_spec(spec, "stats", (*rows, "stat"), {**kept, "stat": len(STATS)}, "float32")]
    made.append(_spec(spec, "hist", (*rows, "bin"), {**kept, "bin": BINS}, "uint32"))
    if "head" in spec.axes and spec.joined:
        made.append(_spec(spec, "l2", ("token", "head"), {"head": spec.sizes["head"]}, "float32"))
    return made


def _row_axes(spec: TensorSpec) -> tuple[str, ...]:
    return ("token",) if spec.joined else ("head", "query")


def _spec(
    spec: TensorSpec, suffix: str, axes: tuple[str, ...], sizes: dict[str, int], dtype: str
) -> TensorSpec:
    key = Key(spec.key.layer, f"{spec.key.name}.{suffix}")
    return TensorSpec(key, axes, sizes, dtype, spec.op, spec.inputs, spec.source, spec.conventions)


def summarize(spec: TensorSpec, array: np.ndarray) -> dict[Key, np.ndarray]:
    """Statistics of each row (token; or head and query) of a step's tensor.

    `stats` [..., 6] as in STATS, over the finite values (-inf of masked scores counts as inf); `hist`
    [..., 48] counts of floor(log2 |x|) from 2^-32 to 2^15; `l2` [token, head] norm of each head vector.
    """
    if spec.key.name in WHOLE:
        return {spec.key: array}
    layer, name = spec.key
    flat = array.reshape(*array.shape[: len(_row_axes(spec))], -1)
    made = {Key(layer, f"{name}.stats"): _statistics(flat), Key(layer, f"{name}.hist"): _histogram(flat)}
    if "head" in spec.axes and spec.joined:
        squares = np.einsum("thd,thd->th", array, array, dtype=np.float64)
        made[Key(layer, f"{name}.l2")] = _float32(np.sqrt(squares))
    return made


def _statistics(rows: np.ndarray) -> np.ndarray:
    finite = np.isfinite(rows)
    count = np.maximum(finite.sum(-1), 1)
    values = np.where(finite, rows, 0).astype(np.float64)  # squares would overflow in float16 and float32
    statistics = np.stack(
        [
            np.where(finite, rows, np.inf).min(-1),
            np.where(finite, rows, -np.inf).max(-1),
            values.sum(-1) / count,
            np.sqrt(np.einsum("...d,...d->...", values, values) / count),
            np.isnan(rows).sum(-1),
            np.isinf(rows).sum(-1),
        ],
        axis=-1,
    )
    return _float32(statistics)


def _float32(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # float64 reaches further; infinity says so
        return values.astype(np.float32)


def _histogram(rows: np.ndarray) -> np.ndarray:
    exponent = np.frexp(np.where(np.isfinite(rows), rows, 0))[1] - 1  # 2^e <= |x| < 2^(e+1)
    bins = np.where(rows == 0, 0, np.clip(exponent - LOWEST, 0, BINS - 1))
    bins = np.where(np.isfinite(rows), bins, BINS)  # NaN and Inf are counted in the statistics
    offsets = np.arange(bins[..., 0].size).reshape(*bins.shape[:-1], 1) * (BINS + 1)
    counts = np.bincount((bins + offsets).ravel(), minlength=bins[..., 0].size * (BINS + 1))
    return counts.reshape(*bins.shape[:-1], BINS + 1)[..., :BINS].astype(np.uint32)
