"""Where in a tensor a difference lies, and of what shape it is: heads, tokens, dims, a factor, an offset."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ..tracer.axes import interleaved
from ..tracer.names import Key
from .align import Alignment, View
from .blocks import MASKED
from .mapped import give_back

ELEMENTS = 1 << 20  # a sample of tokens is looked at beyond this
EXPLAINS = 0.98  # the share of a difference that a simple shape has to explain to be told
SMALL = 0.02  # parts whose error is less than this share of the worst part's count as right


class Sample(NamedTuple):
    """Both sides in float64, token axis first, [token, ...] with `axes`; NaN for what cannot count."""

    a: np.ndarray
    b: np.ndarray
    axes: tuple[str, ...]
    tokens: np.ndarray
    masked: tuple[np.ndarray, np.ndarray]

    @property
    def d(self) -> np.ndarray:
        return self.a - self.b


def sample(alignment: Alignment, key: Key, step: int) -> Sample | None:
    """The rows of a tensor to look at; of several common parts the first that differs at all."""
    taken = None
    for view in alignment.views(key, step):
        taken = take(view, masked=key.name == "scores")
        if np.nan_to_num(taken.d).any() or (np.isnan(taken.a) != np.isnan(taken.b)).any():
            return taken
    return taken


def take(view: View, masked: bool) -> Sample:
    """Both sides of a view, or of a sample of its tokens."""
    place = next((i for i, axis in enumerate(view.axes) if axis in ("token", "query")), 0)
    a, b = np.moveaxis(view.a, place, 0), np.moveaxis(view.b, place, 0)
    axes = (view.axes[place], *view.axes[:place], *view.axes[place + 1 :])
    stride = max(1, a.size // ELEMENTS)
    a, b = a[::stride].astype(np.float64), b[::stride].astype(np.float64)
    hidden = (masked & (a <= MASKED), masked & (b <= MASKED))
    if view.unseen is not None:
        unseen = np.moveaxis(view.unseen, place, 0)[::stride]
        hidden = (hidden[0] | unseen, hidden[1] | unseen)
    give_back(view.a)
    give_back(view.b)
    for side, away in zip((a, b), hidden):
        side[~np.isfinite(side) | away] = np.nan
    return Sample(a, b, axes, view.tokens[::stride], hidden)


def describe(found: Sample, noise: float) -> list[str]:
    """What there is to say about the difference, the most telling first."""
    said = [*_not_finite(found)]
    d = np.nan_to_num(found.d)
    if not d.any():
        return said
    said += _order(found, d)
    said += _shape(found, d)
    for axis, name in ((0, "token"), *((i, "head") for i, axis in enumerate(found.axes) if axis == "head")):
        said += _where(found, d, axis, name, noise)
    said += _dims(found, d)
    return said


def _not_finite(found: Sample) -> Iterator[str]:
    ours, theirs = found.masked
    let, hid = int((theirs & ~ours).sum()), int((ours & ~theirs).sum())
    if let:
        yield f"ours lets {let} keys through that the reference masks"
    if hid:
        yield f"ours masks {hid} keys that the reference lets through"
    bad_a = np.isnan(found.a) & ~ours
    bad_b = np.isnan(found.b) & ~theirs
    if bad_a.any() or bad_b.any():
        yield f"NaN or infinite: {int(bad_a.sum())} elements of ours, {int(bad_b.sum())} of the reference's"


def _order(found: Sample, d: np.ndarray) -> Iterator[str]:
    """Head vectors with RoPE pairs in the other order: transformers and a llama's GGUF differ so."""
    if found.axes[-2:] != ("head", "dim") or d.shape[-1] % 2 or d.shape[-1] < 4:
        return
    total = float((d * d).sum())
    for side, turned, other in (("ours", found.a, found.b), ("the reference", found.b, found.a)):
        left = np.nan_to_num(interleaved(turned) - other)
        if _explains(left, total):
            yield (
                f"{side} has the halves of RoPE pairs apart, as transformers, the other side by side, as a "
                f"llama's GGUF: this explains {_share(left, total)}; where a dump is just in that order, "
                "import it with --half-split"
            )


def _shape(found: Sample, d: np.ndarray) -> Iterator[str]:
    """A common factor, a factor for each token, or one offset for all tokens."""
    b = np.where(np.isnan(found.d), 0, found.b)
    total = float((d * d).sum())
    if not np.nan_to_num(found.a).any():
        yield "ours is zero throughout"
        return
    if (s := common_factor(d, b)) is not None:
        yield f"ours is {s:.6g} times the reference: one factor explains {_share(d - (s - 1) * b, total)}"
        return
    rows_d, rows_b = d.reshape(len(d), -1), b.reshape(len(b), -1)
    squares = (rows_b * rows_b).sum(1)
    factors = np.divide((rows_d * rows_b).sum(1), squares, out=np.zeros(len(d)), where=squares > 0)
    left = rows_d - factors[:, None] * rows_b
    if _explains(left, total) and rows_d.shape[1] >= 8:
        span = f"{1 + factors.min():.4g} to {1 + factors.max():.4g}"
        yield f"each token has a factor of its own, {span}, which explains {_share(left, total)}"
    elif (left := offset(d)) is not None:
        yield f"every token is off by the same offset: it explains {_share(left, total)}"


def common_factor(d: np.ndarray, b: np.ndarray) -> float | None:
    """The factor s with a = s b, where it explains the difference d = a - b."""
    squares = float((b * b).sum())
    s = float((d * b).sum()) / squares if squares else 0.0
    return 1 + s if d.size >= 8 and _explains(d - s * b, float((d * d).sum())) else None


def offset(d: np.ndarray) -> np.ndarray | None:
    """What is left of the difference [token, ...] without its mean over tokens, where that explains it."""
    left = d - d.mean(0)
    return left if len(d) >= 4 and _explains(left, float((d * d).sum())) else None


def _explains(left: np.ndarray, total: float) -> bool:
    return float((left * left).sum()) < (1 - EXPLAINS) * total


def _share(left: np.ndarray, total: float) -> str:
    return f"{100 * (1 - float((left * left).sum()) / total):.4g}% of the difference"


def _where(found: Sample, d: np.ndarray, axis: int, name: str, noise: float) -> Iterator[str]:
    """Which tokens or heads differ, where not all do."""
    if d.shape[axis] < 2:
        return
    others = tuple(i for i in range(d.ndim) if i != axis)
    error = np.sqrt((d * d).sum(others) / np.maximum((np.nan_to_num(found.b) ** 2).sum(others), 1e-300))
    wrong = np.flatnonzero(error > max(noise, SMALL * error.max()))
    if not 0 < len(wrong) < np.count_nonzero(~np.isnan(found.d).all(others)):  # of those that are known
        return
    numbers = found.tokens[wrong] if name == "token" else wrong
    last = found.tokens[-1] if name == "token" else len(error) - 1
    if wrong[-1] == len(error) - 1 and len(wrong) == len(error) - wrong[0] and len(wrong) > 1:
        before = f"not in {name} 0" if wrong[0] == 1 and numbers[0] == 1 else f"from {name} {numbers[0]} on"
        yield f"{before} (of {int(last) + 1})"
    else:
        shown = ", ".join(map(str, numbers[:8])) + (", …" if len(numbers) > 8 else "")
        yield f"only in {name}{'s' if len(numbers) > 1 else ''} {shown} (of {int(last) + 1})"


def _dims(found: Sample, d: np.ndarray) -> Iterator[str]:
    """Even or odd dims, or a range of them, where the others agree."""
    if found.axes[-1] != "dim" or d.shape[-1] < 4:
        return
    squares = (d * d).reshape(-1, d.shape[-1]).sum(0)
    known = ~np.isnan(found.d).reshape(-1, d.shape[-1]).all(0)
    total, wrong = squares.sum(), np.flatnonzero(squares > SMALL**2 * squares.max())
    for first, name in ((0, "even"), (1, "odd")):
        if squares[first::2].sum() > (1 - SMALL**2) * total and known[1 - first :: 2].any():
            yield f"only in {name} dims"
            return
    if len(wrong) < np.count_nonzero(known) and wrong[-1] - wrong[0] + 1 == len(wrong):
        yield f"only in dims {wrong[0]} to {wrong[-1]} (of {d.shape[-1]})"
