"""The threshold of every tensor: what rounding explains, from its own op and from its inputs' errors.

There is no global tolerance.  For each tensor and step

    noise = own + stored + sum over inputs of gain * (the input's error, as far as that is noise itself)

`own` is the op's rounding at the two declared precisions (`roundoff`), `stored` that of the types in the
files, `gain` how much the op can enlarge an error (`growth`).  The inputs' errors are measured, so that an op
is judged by what it adds.  Where an input was not recorded, its error is estimated from the nearest recorded
tensors that lead to it, with gains of at most 1.

Random errors of q and k do not multiply all scores by one factor: where nearly all of the difference is one,
what scores inherit is no excuse.

Where two runs of one engine agree to the bit up to an op, nothing is inherited and `own` alone counts: a
difference of 1e-5 is a fault there, and rounding forty layers deep in a quantised model.

`match`: the same values.  `rounding`: NRMSE <= noise.  `inherited`: over noise, but explained by an input
that diverged.  `diverged`: more than noise and inputs explain, or NaN or masks on one side only.
"""

import math
from collections.abc import Mapping

import numpy as np

from ..tracer.errors import UserError
from ..tracer.format import Header
from ..tracer.names import Key
from ..tracer.text import visible
from . import growth, roundoff
from .align import Alignment
from .alike import alike
from .growth import Error, Op, Part
from .metrics import Measured
from .partial import Printed
from .roundoff import Precision
from .wiring import HISTORY, Wiring, base_name

MOST = 0.5  # no more than this is ever called rounding
UNKNOWN_TERMS = 1024  # length of a sum whose operands were not recorded
STATISTIC = 4.0  # min, max and mean of a row feel an error more than its norm does
BIN_SHARE = 6.0  # numbers that change the bin of a histogram (of powers of 2) for each one and unit of error
ONE_FACTOR = 0.9  # the share of a difference that a common factor explains where it is no accident
MANY = 64  # elements from which on this can be told
MOST_LAYERS = 1000  # a file that states more is not believed
HUGE = float(np.finfo(float).max)  # what an infinite error counts as
DEEPEST = 50  # how many tensors that were not recorded are passed through on the way to one that was

STATUSES = ("", "match", "rounding", "inherited", "diverged")
MATCH, ROUNDING, INHERITED, DIVERGED = 1, 2, 3, 4


class Noise:
    """Thresholds `noise`, errors `added` and `status` of all compared tensors, arrays [tensor, step]."""

    def __init__(self, alignment: Alignment, measured: Measured):
        a, b = alignment.a, alignment.b
        self.keys, self._index, self._measured = alignment.keys, alignment.index, measured
        self._specs = {base_name(key): spec for key, spec in (a.specs | b.specs).items()}
        self._place: Mapping[Key, int | np.ndarray] = self._index  # of a tensor, or of many alike at once
        self._wiring = Wiring(a.specs, b.specs, _layers(b.trace.header))
        self._sides = tuple((Precision.of(side.trace.header), side.specs) for side in (a, b))
        self._positions = np.array([step.kv_len - 1 for step in a.steps], float)
        self._spread = 1 + np.array([step.n_tokens for step in a.steps], float) ** -0.5
        self._nrmse, self._rows, self._rms = measured.nrmse, measured.row_nrmse, measured.rms_b
        self._norm, self._scale_of = measured.mag_b, measured.scale
        self._compared, self._equal = measured.compared, measured.equal
        self._seen_rms, self._seen_norm = (
            np.where(self._compared, known, np.nan) for known in (self._rms, self._norm)
        )
        self._largest = np.where(self._compared, measured.total("max_abs"), np.inf)
        self._nothing = np.zeros(len(self._positions), bool)
        self._broken = (measured.total("clashes") + measured.total("mask_differs")) > 0
        self._stored: dict[tuple[str, str], Part] = {}
        self.printed = Printed(alignment, measured)
        self._errors: dict[Key, Error] = {}
        self.noise = np.full(self._nrmse.shape, np.nan)
        self.added = np.full(self._nrmse.shape, np.nan)
        self.status = np.zeros(self._nrmse.shape, np.int8)
        if not self._judge_layers_at_once():
            self._judge_one_by_one()
        for figures in (self.noise, self.added):
            figures[~self._compared] = np.nan
        self.status[~self._compared] = 0

    def first(self) -> tuple[int, int] | None:
        """The first diverged tensor as (index of its key, step): by step, then execution order."""
        steps, keys = np.nonzero((self.status == DIVERGED).T)
        return (int(keys[0]), int(steps[0])) if len(steps) else None

    def segment(self, key: Key) -> tuple[list[Key], list[Key]]:
        """The recorded tensors that lead to `key`, and those in between that were not recorded."""
        return self._wiring.nearest(base_name(key), {base_name(name) for name in self.keys})

    def explain(self, key: Key, step: int) -> str:
        """How the threshold of a tensor came about, line by line; UserError where it was not compared."""
        index = self._index.get(key, -1)
        if index < 0 or not 0 <= step < len(self._positions) or not self._compared[index, step]:
            raise UserError(f"{visible(str(key))} of step {step} was not compared")
        if not self._errors:
            self._judge_one_by_one()
        parts, _ = self._parts(index, key)
        noise = self.noise[index, step]
        lines = [f"{visible(str(key))}, step {step}: the threshold {noise:.1e} is the sum of"]
        lines += [f"  {part.noise[step]:8.1e}  {visible(part.text)}" for part in parts]
        if sum(part.noise[step] for part in parts) > MOST:
            lines.append(f"  and no more than {MOST}: nothing above is ever called rounding")
        more = sum(part.full[step] - part.noise[step] for part in parts)
        if more > 0:
            lines.append(f"inputs that diverged explain {more:.1e} more")
        lines.append(f"measured: NRMSE {self._nrmse[index, step]:.1e}, {STATUSES[self.status[index, step]]}")
        return "\n".join(lines)

    # ---- judging

    def _judge_one_by_one(self) -> None:
        """In execution order: what diverged taints what depends on it."""
        layer = -1
        for index, key in enumerate(self.keys):
            last = self._wiring.last_layer + 1 if key.layer is None else key.layer
            while key.name != "embd" and layer < min(last, MOST_LAYERS):  # so that no recursion is deeper
                self._error(Key(layer, "resid_out") if layer >= 0 else Key(None, "embd"))
                layer += 1
            parts, tainted = self._judge(index, key)
            if not key.name.endswith(".hist"):
                self._remember(index, key, parts, tainted | (self.status[index] == DIVERGED))

    def _judge_layers_at_once(self) -> bool:
        """The same for whole traces as long as nothing is tainted, as errors are then what was measured.

        Most comparisons are of this kind, and the layers one by one take ten times as long.  False where it
        is another one.
        """
        if self.printed.keys or not self._compared.all() or any("." in key.name for key in self.keys):
            return False
        whole, rows = (np.minimum(np.fmax(error, 0), HUGE) for error in (self._nrmse, self._rows))
        sound, nothing = np.zeros_like(whole), np.zeros(whole.shape, bool)
        figures = (whole, rows, self._largest, sound, nothing, self._rms, self._norm)
        groups = alike(self.keys, [specs for _, specs in self._sides], self._wiring)
        for key, index, inputs in groups or ():
            self._place = {key: index, **inputs}
            self._errors = {name: Error(*(each[at] for each in figures)) for name, at in inputs.items()}
            _, tainted = self._judge(index, key)
            if tainted.any() or (self.status[index] == DIVERGED).any():
                groups = None
                break
        self._place, self._errors = self._index, {}
        return groups is not None

    def _judge(self, index: int | np.ndarray, key: Key) -> tuple[list[Part], np.ndarray]:
        parts, tainted = self._parts(index, key)
        noise = np.minimum(sum(part.noise for part in parts), MOST)
        inherited = sum(part.full for part in parts if part.inherited)
        nrmse = self._nrmse[index]
        broken = self._broken[index]
        if isinstance(index, int) and key in self.printed.keys:  # never many at once
            broken = broken | self.printed.off(index, noise)
        error = np.where(broken | np.isnan(nrmse), np.inf, nrmse)
        explained = tainted & ((error <= noise + inherited) | broken)
        status = np.where(error <= noise, ROUNDING, np.where(explained, INHERITED, DIVERGED))
        if key not in self.printed.keys:  # printed digits cannot tell
            status[self._equal[index]] = MATCH
        self.status[index], self.noise[index] = status, noise
        self.added[index] = np.maximum(nrmse - inherited, 0)
        return parts, tainted

    def _parts(self, index: int | np.ndarray, key: Key) -> tuple[list[Part], np.ndarray]:
        """What the threshold of a compared tensor is the sum of, and whether it depends on what diverged."""
        base = base_name(key)
        reasons, tainted = self._reasons(base, self._rms[index] if key == base else None)
        parts = [*self._statistic(index, key, reasons), self._storage(index, key)]
        if key.name == "scores":
            random = np.where(self._one_factor(index, key) & ~tainted, 0.0, 1.0)
            parts = [part.mapped(lambda e: e * random) if part.inherited else part for part in parts]
        return parts, tainted

    def _one_factor(self, index: int | np.ndarray, key: Key) -> np.ndarray:
        """Where one factor explains nearly all of the difference, and the inputs don't have it [step]."""
        dd, db, bb, count = (self._measured.total(name)[index] for name in ("dd", "db", "bb", "count"))
        inputs = (name for name in self._wiring.inputs(key) if name in self._place)
        brought = np.nan_to_num(
            np.prod([self._scale_of[self._place[name]] for name in inputs], axis=0), nan=1.0
        )
        factor = self._scale_of[index]
        own = np.abs(factor / np.where(brought == 0, 1, brought) - 1) > np.abs(factor - 1) / 2
        return (count >= MANY) & own & (db * db > ONE_FACTOR * dd * bb)

    def _storage(self, index: int | np.ndarray, key: Key) -> Part:
        """What rounding to the two stored types adds to a tensor."""
        ours, theirs = (specs[key].dtype for _, specs in self._sides)
        if (ours, theirs) not in self._stored:
            count = self._measured.total("count")
            with np.errstate(invalid="ignore"):
                both = np.hypot(*(roundoff.storage(name, self._rms, count) for name in (ours, theirs)))
            self._stored[ours, theirs] = Part(f"stored as {ours} and {theirs}", both, both)
        return self._stored[ours, theirs].mapped(lambda amount: amount[index])

    def _statistic(self, index: int | np.ndarray, key: Key, parts: list[Part]) -> list[Part]:
        """What the reasons for a tensor's error mean for a statistic of it."""
        if key.name.endswith(".hist"):
            counts = np.maximum(self._measured.total("bb")[index], 1)
            numbers = np.sqrt(self._measured.total("count")[index] * counts)  # at least as many were counted
            few = np.sqrt(2 * 8 / counts)
            moved = (part.mapped(lambda e: np.sqrt(2 * BIN_SHARE * numbers * e / counts)) for part in parts)
            return [Part("eight numbers near the edge of a bin", few, few), *moved]
        return [part.mapped(lambda e: STATISTIC * e) for part in parts] if key != base_name(key) else parts

    def _remember(self, index: int, key: Key, parts: list[Part], tainted: np.ndarray) -> None:
        """Keep the tensor's error for the ops that read it; several statistics of one count as the worst.

        Below a diverged tensor noise cannot be measured any more: it is taken to be what it was above.
        """
        compared, (estimate, noise) = self._compared[index], growth.typical(parts)
        hidden = np.minimum(self.printed.precision[index], noise)  # by printing
        whole, rows = (
            np.minimum(np.fmax(np.where(compared, error[index] + hidden, estimate), 0), HUGE)
            for error in (self._nrmse, self._rows)
        )
        healthy = noise / np.maximum(np.maximum(whole, rows), 1e-300)
        unsound = np.where(tainted, 1 - np.minimum(healthy, 1), 0.0)
        found, base = Error(whole, rows, self._largest[index], unsound, tainted), base_name(key)
        if key == base:
            found.rms, found.norm = self._seen_rms[index], self._seen_norm[index]
        elif key.name.endswith(".l2"):
            found.norm = self._seen_rms[index]
        earlier = self._errors.get(base)
        self._errors[base] = found if earlier is None else earlier.worst(found)

    # ---- the reasons for an error

    def _reasons(self, key: Key, rms: np.ndarray | None, depth: int = 0) -> tuple[list[Part], np.ndarray]:
        """Why `key` may differ, and whether it depends on what diverged [step]."""
        kind = self._wiring.kind(key)
        inputs = []
        for name in self._wiring.inputs(key):
            error = self._error(name, depth + 1)
            history = kind in ("scores", "attend") and name.name in HISTORY
            inputs.append((name, error.so_far() if history else error))
        tainted = self._nothing
        for name, error in inputs:
            tainted = tainted | error.tainted
            if (
                error.recorded and self._wiring.kind(name) == "choice"
            ):  # by a near tie: no rounding from here on
                tainted = tainted | (error.whole > 0)
        terms = self._terms(key, kind)
        sides = tuple(precision.at(key, specs.get(key)) for precision, specs in self._sides)
        op = Op(key, sides, inputs, terms, self._positions, self._spread, rms, self._scale(key, terms))
        return list(growth.RULES[kind](op)), tainted

    def _error(self, key: Key, depth: int = 0) -> Error:
        """The error of an input; where it was not recorded, estimated from what leads to it."""
        if key not in self._errors:
            nothing = np.zeros(len(self._positions))
            self._errors[key] = Error(nothing, nothing, None, nothing, nothing > 0)  # also ends a circle
            if depth < DEEPEST and key not in self._index:
                reasons, tainted = self._reasons(key, None, depth)
                full, noise = growth.typical(reasons)
                unsound = 1 - noise / np.maximum(full, 1e-300)
                self._errors[key] = Error(full, full, None, np.where(tainted, unsound, 0.0), tainted)
        return self._errors[key]

    def _terms(self, key: Key, kind: str) -> int:
        """How many products an element of `key` is the sum of."""
        if kind in ("softmax", "attend"):
            return int(self._positions.max(initial=0)) + 1
        spec = next((self._specs[name] for name in self._wiring.inputs(key) if name in self._specs), None)
        if spec is None:
            return UNKNOWN_TERMS
        last = spec.axes[-1:] if kind == "scores" else spec.axes[1:]
        return math.prod(spec.sizes.get(axis, 1) for axis in last)

    def _scale(self, key: Key, terms: int) -> float:
        declared = self._specs[key].conventions.get("scale") if key in self._specs else None
        return float(declared) if isinstance(declared, (int, float)) else 1 / np.sqrt(max(terms, 1))


def _layers(header: Header) -> int:
    """The number of layers that a header states; 0 where it does not."""
    stated = header.hyperparameters.get(f"{header.architecture}.block_count", 0)
    return stated if isinstance(stated, int) and 0 < stated < MOST_LAYERS else 0
