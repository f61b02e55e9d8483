"""How errors grow through each kind of op: its own rounding, and what it makes of its inputs' errors.

A rule gives the reasons for a difference in an op's output; all figures are relative to the L2 norm of the
tensor that they belong to and arrays over steps.  `gain` is how much an op can enlarge a relative error:

- rope keeps norms: 1.  A sum: each input's norm over the result's, both known.  Both with SLACK to spare.
- scores = scale q·k: relative errors of q and k add up.  Errors point in random directions, so that a product
  feels 1/sqrt(dim) of them, 4/sqrt(dim) at most, times scale |q| |k| / rms(scores), which is known; at
  least 2.
- m moves by no more than any score does; l and probs by a factor of exp(E), with E the error of the scores
  that matter, at most SCORE_PEAK times the RMS error of all.
- matrix products, norms and products of elements depend on weights that a trace does not hold.  GAIN bounds
  them: an error in random directions grows by |W|_F |x| / (sqrt(n) |W x|), which was seen at 0.5 to 2.5 on a
  real model's prefill and up to 11 for single tokens, whose gain is therefore allowed to be twice that of
  many.  Errors are taken per token there: in the whole tensor one with massive activations hides the others.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, NamedTuple

import numpy as np

from ..tracer.names import Key
from . import roundoff
from .roundoff import Precision
from .wiring import kind_of

GAIN = 8.0
SLACK = 1.5
UNKNOWN_RATIO = 8.0  # |q| |k| scale / rms(scores), or a sum's operand over its result, where not recorded
SCORE_PEAK = 4.0  # the largest error of a score over its RMS
TYPICAL = 0.25  # typical rounding over its upper end
LARGEST = 10.0  # errors above this need no telling apart
UNRELATED = 4.0  # |a - b| / |b| of rows that have nothing to do with each other


@dataclass
class Error:
    """What is known of a tensor's error [step]: of the whole, per token (RMS), and the largest element's.

    `unsound` is the share of it, 0 to 1, that is no noise; `tainted` says that the tensor diverged or depends
    on one that did; `rms` and `norm` (mean L2 norm of head vectors) are the reference's, None or NaN where
    unknown.
    """

    whole: np.ndarray
    rows: np.ndarray
    largest: np.ndarray | None
    unsound: np.ndarray
    tainted: np.ndarray
    rms: np.ndarray | None = None
    norm: np.ndarray | None = None

    @property
    def sound(self) -> np.ndarray:
        return 1 - self.unsound

    @property
    def recorded(self) -> bool:
        """False where all this was estimated from other tensors."""
        return self.largest is not None

    def worst(self, other: "Error") -> "Error":
        """The larger error of two views of one tensor."""
        return self._combined([_larger(x, y) for x, y in zip(vars(self).values(), vars(other).values())])

    def so_far(self) -> "Error":
        """The worst of all steps until each one: what a KV cache holds."""
        return self._combined(
            [x if x is None else np.fmax.accumulate(x, axis=-1) for x in vars(self).values()]
        )

    @staticmethod
    def _combined(larger: list[Any]) -> "Error":
        whole, rows, largest, sound, tainted, rms, norm = larger
        return Error(whole, rows, largest, sound, tainted, rms, norm)


def _larger(x: np.ndarray | None, y: np.ndarray | None) -> Any:
    return y if x is None else x if y is None else np.fmax(x, y)


class Part(NamedTuple):
    """One reason for a difference: `noise` of it is innocent, `full` has what diverged inputs bring too."""

    text: str
    noise: np.ndarray
    full: np.ndarray
    inherited: bool = False
    gain: np.ndarray | float = 1.0  # what an input's error was multiplied by

    def mapped(self, change: Callable[[np.ndarray], np.ndarray]) -> "Part":
        return self._replace(noise=change(self.noise), full=change(self.full))


def typical(parts: Sequence[Part]) -> tuple[np.ndarray, np.ndarray]:
    """The error to expect where the parts are upper ends: the worst input's, and the op's own rounding.

    In full, and what of it is noise.  Real models show no more than this: errors that come by several ways do
    not add up over the layers.
    """
    own = [part for part in parts if not part.inherited]
    inherited = [part for part in parts if part.inherited]
    gains = [np.maximum(part.gain, 1.0) for part in inherited]
    full = [part.full / gain for part, gain in zip(inherited, gains)]
    noise = [part.noise / gain for part, gain in zip(inherited, gains)]
    return _expected(sum(part.full for part in own), full), _expected(sum(part.noise for part in own), noise)


def _expected(own: np.ndarray | int, taken: list[np.ndarray]) -> np.ndarray:
    return np.minimum(np.hypot(TYPICAL * own, reduce(np.maximum, taken) if taken else 0.0), LARGEST)


class Op(NamedTuple):
    """An op whose rounding is asked for.

    `terms` are those of its sum, `position` is that of its last token, `spread` 1 + 1 / sqrt(tokens) [step],
    `rms` the reference's of its result, where recorded, `scale` what q·k is multiplied by.
    """

    key: Key
    sides: tuple[Precision, ...]
    inputs: list[tuple[Key, Error]]
    terms: int
    position: np.ndarray
    spread: np.ndarray
    rms: np.ndarray | None
    scale: float

    def own(self, text: str, rounding: Callable[[Precision], np.ndarray | float]) -> Part:
        """Both sides' rounding together."""
        ours, theirs = (rounding(side) for side in self.sides)
        amount = np.hypot(ours, theirs) + 0 * self.position
        said = " and ".join(dict.fromkeys(side.says for side in self.sides))
        return Part(f"{text} ({said})", amount, amount)


def _inherited(key: Key, error: np.ndarray, sound: np.ndarray, gain: np.ndarray | float, how: str) -> Part:
    full = gain * error
    return Part(f"from {key}: {how}", full * sound, full, True, gain)


def _by_rows(op: Op) -> Iterator[Part]:
    for key, x in op.inputs:
        if kind_of(key) == "choice":
            other = np.where(x.whole > 0, UNRELATED, 0.0)
            yield _inherited(key, other, x.sound, 1.0, "another expert gives another row")
            continue
        gain = GAIN * op.spread
        yield _inherited(key, x.rows, x.sound, gain, f"its error per token, {GAIN:g} to {2 * GAIN:g} times")


def _together(op: Op, gain: np.ndarray | float) -> Iterator[Part]:
    """What two factors' errors make of each other: it counts once they are large."""
    if len(op.inputs) == 2:
        (first, x), (second, y) = op.inputs
        text = f"its error times that of {second}"
        yield _inherited(first, x.rows * y.rows, x.sound * y.sound, gain, text)


def _embedding(op: Op) -> Iterator[Part]:
    yield op.own("table lookup", lambda side: roundoff.elementwise(side.other))


def _linear(op: Op) -> Iterator[Part]:
    text = f"matrix product over {op.terms} terms"
    yield op.own(text, lambda side: roundoff.product(side.product, op.terms, op.spread))
    yield from _by_rows(op)


def _norm(op: Op) -> Iterator[Part]:
    yield op.own(f"norm over {op.terms} elements", lambda side: roundoff.norm(side.other, op.terms))
    yield from _by_rows(op)


def _elements(op: Op) -> Iterator[Part]:
    yield op.own("a few roundings an element", lambda side: roundoff.elementwise(side.other))
    yield from _by_rows(op)
    yield from _together(op, GAIN)


def _rope(op: Op) -> Iterator[Part]:
    yield op.own("rotation, at the last position", lambda side: roundoff.rotation(side.other, op.position))
    for key, x in op.inputs:
        yield _inherited(key, x.whole, x.sound, SLACK, "its error: rotations keep norms")


def _add(op: Op) -> Iterator[Part]:
    yield op.own("a few roundings an element", lambda side: roundoff.elementwise(side.other))
    for key, x in op.inputs:
        ratio = _ratio(x.rms, op.rms)
        yield _inherited(key, x.whole, x.sound, SLACK * ratio, "its error, by its size in the sum")


def _ratio(above: np.ndarray | None, below: np.ndarray | None) -> np.ndarray | float:
    if above is None or below is None:
        return UNKNOWN_RATIO
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = above / below
    return np.where(ratio < np.inf, ratio, UNKNOWN_RATIO)


def _scores(op: Op) -> Iterator[Part]:
    norms = [x.norm for _, x in op.inputs if x.norm is not None]
    ratio = _ratio(op.scale * norms[0] * norms[1] if len(norms) == 2 else None, op.rms)
    gain = np.maximum(2, 4 * ratio / np.sqrt(op.terms))
    yield op.own(
        f"q·k over {op.terms} terms, enlarged by |q| |k| over |q·k|",
        lambda side: gain * roundoff.product(side.attention, op.terms, op.spread),
    )
    for key, x in op.inputs:
        yield _inherited(key, x.rows, x.sound, SLACK * gain, "its error, enlarged likewise")
    yield from _together(op, SLACK * gain)


def _max(op: Op) -> Iterator[Part]:
    yield op.own("comparison", lambda side: 0.0)
    for key, x in op.inputs:
        shift = _shift(x)
        relative = shift / SCORE_PEAK if op.rms is None else shift / np.maximum(op.rms, 1e-30)
        yield _inherited(key, relative, x.sound, SLACK, "the largest shift of a score, over the size of m")


def _softmax(op: Op) -> Iterator[Part]:
    yield op.own(
        f"exp, and a sum over up to {op.terms} keys", lambda side: roundoff.softmax(side.attention, op.terms)
    )
    for key, x in op.inputs:
        error = SCORE_PEAK * _absolute(x)
        full, noise = (np.expm1(np.minimum(error * share, LARGEST)) for share in (1.0, x.sound))
        text = f"from {key}: exp(E) - 1, with E {SCORE_PEAK:g} times the RMS error of scores"
        gain = SCORE_PEAK if x.recorded else SCORE_PEAK * UNKNOWN_RATIO
        yield Part(text, noise, full, True, gain)


def _shift(scores: Error) -> np.ndarray:
    """The largest absolute error of a score; estimated where scores were not recorded."""
    if scores.largest is not None:
        return np.nan_to_num(scores.largest, nan=LARGEST, posinf=LARGEST)
    return SCORE_PEAK * _absolute(scores)


def _absolute(scores: Error) -> np.ndarray:
    """The RMS of the absolute error of scores."""
    if scores.rms is None:
        return scores.whole * UNKNOWN_RATIO if scores.largest is None else _shift(scores)
    return scores.whole * np.nan_to_num(scores.rms, nan=UNKNOWN_RATIO)


def _attend(op: Op) -> Iterator[Part]:
    text = f"probs·V over up to {op.terms} keys"
    yield op.own(text, lambda side: roundoff.product(side.attention, op.terms, op.spread))
    for key, x in op.inputs:
        error = np.maximum(x.whole, x.rows)
        yield _inherited(key, error, x.sound, GAIN * op.spread, f"its error, {GAIN:g} to {2 * GAIN:g} times")


def _choice(op: Op) -> Iterator[Part]:
    yield op.own("a choice of the largest", lambda side: 0.0)
    for key, x in op.inputs:
        flips = np.where(x.whole > 0, 1.0, 0.0)
        yield _inherited(key, flips, x.sound, 1.0, "any error may turn a near tie")


RULES = {
    "embedding": _embedding,
    "linear": _linear,
    "norm": _norm,
    "rope": _rope,
    "add": _add,
    "scores": _scores,
    "max": _max,
    "softmax": _softmax,
    "attend": _attend,
    "glu": _elements,
    "choice": _choice,
    "other": _linear,
}
