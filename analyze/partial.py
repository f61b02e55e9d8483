"""Tensors of which a log shows some values, rounded: what it says of them, and how that is compared.

What was printed is an interval: the value is at most `rounding` away.  A difference counts as far as it
leads out of that interval, so one that printing alone explains is 0.  Values that were not printed are NaN in
the trace and left out on both sides.  For them there are the sums that newer logs state: n values added up in
float32 give a sum that is off by no more than LAMBDA sqrt(n) u of the sum of magnitudes (Higham & Mary 2019,
doi:10.1137/18M1226312: all but one in 1000).  Errors whose L2 norm is e move the sum by sqrt(n) e at most
(Cauchy-Schwarz; those of quantised models come near it: 8-bit activations shift all logits alike), and the
sum of squares by 2 e |x|.  e is what the printed values show, MARGIN times, and what printing hides, but no
more than rounding explains.  docs/format.md has the conventions.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..tracer.format import ROW_AXES, Step, TensorSpec
from ..tracer.names import Key
from .blocks import Piece

if TYPE_CHECKING:
    from .align import Alignment, View
    from .metrics import Measured

LAMBDA = 4.0
MARGIN = 4.0  # by how much more than the printed values the others may be off
UNIT = 2.0**-24  # float32's
LAST_DIGIT = 0.5e-6  # sums are printed with six decimals


class Sum(NamedTuple):
    """A sum (or sum of squares) that a log states of a tensor and step, and the other side's.

    `exact` is by how much it may be off where both ran the same numbers; `per_error` by how much more for
    each unit of NRMSE.
    """

    step: int
    kind: str
    stated: float
    found: float
    values: int
    exact: float
    per_error: float

    def is_off(self, nrmse: float) -> bool:
        """Whether it differs by more than an error of `nrmse` explains."""
        if not (np.isfinite(self.stated) and np.isfinite(self.found)):
            return not (self.stated == self.found or (np.isnan(self.stated) and np.isnan(self.found)))
        return abs(self.stated - self.found) > self.exact + self.per_error * nrmse


def is_partial(spec: TensorSpec) -> bool:
    """Whether a tensor was read off a log: some values are missing or all are rounded."""
    return bool(spec.conventions.get("partial") or spec.conventions.get("rounding"))


def rounding(spec: TensorSpec) -> float:
    """How far a printed value may be off; 0 where values are exact."""
    stated = spec.conventions.get("rounding", 0.0)
    return float(stated) if isinstance(stated, (int, float)) and 0 <= stated < np.inf else 0.0


def _told(said: Mapping[str, Any], name: str, step: int) -> Any:
    """What conventions tell of a step; None where that is nothing, or nothing that a reader knows."""
    steps = said.get(name)
    return steps.get(str(step)) if isinstance(steps, dict) else None


def stated_sum(said: Mapping[str, Any], kind: str, step: int) -> float | None:
    """`sum` or `sum_sq` of a step, NaN and infinities included; None where the log has none."""
    told = _told(said, kind, step)
    try:
        return float(told) if isinstance(told, (int, float, str)) else None
    except ValueError:
        return None


def printed_nans(said: Mapping[str, Any], step: int) -> int:
    """At how many places of a step a log shows NaN."""
    told = _told(said, "nan", step)
    return len(told) if isinstance(told, list) else 0


def as_printed(view: "View", specs: tuple[TensorSpec, TensorSpec], steps: tuple[Step, Step]) -> "View":
    """A view in float64 of which only what both sides show differs, and that by what printing cannot explain.

    `unseen` marks the rest, which is NaN on both sides.
    """
    a, b = view.a.astype(np.float64), view.b.astype(np.float64)
    unseen = np.zeros(a.shape, bool)
    for side, spec, step in zip((a, b), specs, steps):
        if is_partial(spec):
            unseen |= (np.isnan(side) & ~_printed_nans(spec, step, view)).reshape(a.shape)
    slack = sum(map(rounding, specs))
    if slack:
        with np.errstate(invalid="ignore"):
            d = a - b
            beyond = np.sign(d) * np.maximum(np.abs(d) - slack - 2 * UNIT * np.abs(a), 0)
        a = np.where(np.isfinite(d), b + beyond, a)
    a[unseen] = b[unseen] = np.nan
    return view._replace(a=a, b=b, unseen=unseen)


def _printed_nans(spec: TensorSpec, step: Step, view: "View") -> np.ndarray:
    """Where the log shows NaN, in the shape of the side's part of the view."""
    whole = np.zeros(spec.shape(step.n_tokens, step.kv_len), bool)
    stated = _told(spec.conventions, "nan", step.index)
    places = [place for place in stated if type(place) is int] if isinstance(stated, list) else []
    whole.reshape(-1)[[place for place in places if 0 <= place < whole.size]] = True
    part = whole.take(view.tokens - step.start, _row_axis(spec))
    if spec.axes == view.axes:  # of later keys than both steps see
        part = part[tuple(map(slice, view.a.shape))]
    return part.reshape(view.a.shape)


def _row_axis(spec: TensorSpec) -> int:
    return next(place for place, axis in enumerate(spec.axes) if axis in ROW_AXES)


def pieces(found: "Alignment", index: int, key: Key) -> Iterator[Piece]:
    """What both sides show of a tensor, as matrices for `metrics.measure`."""
    spec = found.a.specs[key]
    for step in range(found.steps):
        for view in found.views(key, step):
            assert view.unseen is not None
            rows = _row_axis(spec)
            a, b, seen = (
                np.moveaxis(side, rows, 0).reshape(len(view.tokens), -1)
                for side in (view.a, view.b, ~view.unseen)
            )
            counts = seen.sum(1)
            for count in np.unique(counts[counts > 0]):
                at = counts == count
                x, y = (side[at][seen[at]].reshape(-1, count) for side in (a, b))
                yield Piece(index, x, y, step, masked=key.name == "scores")


def estimate_lengths(found: "Alignment", measured: "Measured") -> None:
    """Put in the length of head vectors, where none was printed whole, as it follows from the RMS."""
    for index, key in enumerate(found.keys):
        spec = found.a.specs[key]
        if spec.axes[-2:] == ("head", "dim") and found.is_partial(key):
            count = measured.total("count")[index]
            measured.total("vectors")[index] = count > 0
            for side in "ab":
                squares = measured.total(side * 2)[index] / np.maximum(count, 1)
                measured.total(f"norm_{side}")[index] = np.sqrt(squares * spec.sizes["dim"])


class Printed:
    """What is known of the tensors of an alignment that were read off a log; `keys` are these.

    `precision` [tensor, step] is how far printing may hide a difference, as an NRMSE; `total` how many
    elements the tensor has where something of it was compared.
    """

    def __init__(self, found: "Alignment", measured: "Measured"):
        self.keys = {key for key in found.keys if found.is_partial(key)}
        shape = measured.compared.shape
        self._nrmse = measured.nrmse
        self.precision, self.total = np.zeros(shape), np.zeros(shape, int)
        self.sums: dict[int, list[Sum]] = defaultdict(list)
        for key in self.keys:
            index = found.index[key]
            slack = sum(rounding(side.specs[key]) for side in (found.a, found.b))
            with np.errstate(divide="ignore", invalid="ignore"):
                self.precision[index] = np.where(slack > 0, slack / measured.rms_b[index], 0.0)
            for step in np.flatnonzero(measured.compared[index]).tolist():
                for view in found.views(key, step):
                    self.total[index, step] += view.a.size
                self.sums[index] += _sums(found, key, step, float(measured.rms_b[index, step]))

    def off(self, index: int, noise: np.ndarray) -> np.ndarray:
        """Where a stated sum differs by more than the NRMSE `noise` [step] explains [step]."""
        wrong = np.zeros(len(noise), bool)
        for each in self.sums.get(index, ()):
            wrong[each.step] |= each.is_off(self._error(index, each.step, float(noise[each.step])))
        return wrong

    def _error(self, index: int, step: int, noise: float) -> float:
        """What NRMSE a whole tensor may have: printed values tell of a part, and printing hides some."""
        shown = MARGIN * self._nrmse[index, step] + self.precision[index, step]
        return float(np.fmin(noise, shown))

    def told(self, found: "Alignment", index: int, step: int, compared: int, noise: float) -> Iterator[str]:
        """Sentences on what of a tensor and step was compared, and on its sums."""
        key = found.keys[index]
        if key not in self.keys:
            return
        whole = int(self.total[index, step])
        slack = sum(rounding(side.specs[key]) for side in (found.a, found.b))
        within = f", within the printed precision ({slack:.0e})" if slack else ""
        yield f"{compared} of {whole} values were printed and compared{within}"
        for each in self.sums.get(index, ()):
            if each.step == step and each.is_off(self._error(index, step, noise)):
                yield (
                    f"the {each.kind} over {each.values} values is {each.stated:.6g} in the log and "
                    f"{each.found:.6g} on the other side: what was not printed differs, too"
                )


class _Side(NamedTuple):
    """One side of a view: what is said of the tensor, and its values in float64, rows first."""

    said: Mapping[str, Any]
    partial: bool
    step: Step
    values: np.ndarray

    @property
    def rows(self) -> int:
        """How many rows of the step were computed: the last ones."""
        told = _told(self.said, "computed_rows", self.step.index)
        return told if type(told) is int and 0 < told <= self.step.n_tokens else self.step.n_tokens

    def stated(self, kind: str) -> float | None:
        """The sum over all rows that were computed; that of printed values tells no more than they do."""
        return stated_sum(self.said, kind, self.step.index) if self.said.get("sum_of") == "all" else None


def _sums(found: "Alignment", key: Key, step: int, rms: float) -> Iterator[Sum]:
    """The sums that either side states of a step that both have whole; of two logs what both state.

    `rms` is that of the printed values.
    """
    for view in found.plain_views(key, step):
        sides = []
        for source, array in ((found.a, view.a), (found.b, view.b)):
            spec, own = source.specs[key], source.steps[source.step_of[view.tokens[0]]]
            rows = np.moveaxis(array, _row_axis(found.a.specs[key]), 0)
            sides.append(_Side(spec.conventions, is_partial(spec), own, rows))
        for log, other in (sides, sides[::-1]):
            if len(view.tokens) != log.step.n_tokens or (other.partial and other is sides[0]):
                continue
            for kind in ("sum", "sum_sq"):
                stated, values = log.stated(kind), other.values[-log.rows :].astype(np.float64)
                if stated is None:
                    continue
                if not other.partial:
                    yield _sum(step, kind, stated, values, rms)
                elif other.stated(kind) is not None and (other.step.n_tokens, other.rows) == (
                    log.step.n_tokens,
                    log.rows,
                ):
                    yield _sum(step, kind, stated, values, rms, other.stated(kind))


def _sum(
    step: int, kind: str, stated: float, values: np.ndarray, rms: float, known: float | None = None
) -> Sum:
    """Against the other side's values, or the sum `known` of it where these are just some of them."""
    shown = values if known is None else values[~np.isnan(values)]
    share = values.size / max(shown.size, 1)
    squares = shown * shown
    added = shown if kind == "sum" else squares
    with np.errstate(invalid="ignore"):  # inf - inf
        total = float(added.sum()) if known is None else known
    # errors are no smaller where values are: relative to those that were printed
    length = max(float(np.sqrt(squares.sum() * share)), rms * np.sqrt(values.size))
    exact = LAST_DIGIT + LAMBDA * np.sqrt(values.size) * UNIT * float(np.abs(added).sum() * share)
    per_error = np.sqrt(values.size) * length if kind == "sum" else 2 * length * length
    name = {"sum": "sum", "sum_sq": "sum of squares"}[kind]
    return Sum(step, name, stated, total, values.size, exact * (1 if known is None else 2), per_error)


def notes(found: "Alignment") -> Iterator[str]:
    """What a reader should know of a log."""
    for side, source in (("ours", found.a), ("the reference", found.b)):
        specs = [source.specs[key] for key in found.keys if is_partial(source.specs[key])]
        if specs:
            some = "some" if any(spec.conventions.get("partial") for spec in specs) else "the rounded"
            sums = any(spec.conventions.get("sum_of") == "all" for spec in specs)
            also = ", and by the sums that it states" if sums else ""
            yield (
                f"{side} is a log that shows {some} values of {len(specs)} tensors: compared at "
                f"these, within the printed precision{also}"
            )
