"""Name the cause of an op that does not reproduce its recorded output: replay it with one thing changed.

The change after which the op gives what was recorded, where the right op does not, is the cause.  This is
evidence, not a guess from statistics: the figure is the share of the difference that the change explains.
Where the op's inputs were not recorded, every op that they come from is tried as well.

Of several causes that explain as much, the stiffer is meant: one with a value from a list or none at all
before one that was fitted.  Those that are equal in this, too, cannot be told apart and are told together.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import NamedTuple

import numpy as np

from ..tracer.errors import UserError
from ..tracer.graph import Op
from ..tracer.names import Key
from .cause import Cause, Value, causes
from .replay import NotRecorded, Replay, residual
from .segment import At, Case, Segment

EXPLAINS = 0.9  # a change that leaves more than a tenth of the difference is not called the cause
PROMISING = 0.2  # the share from which on a value is refined
ALIKE = 1.5  # remainders that differ by less than this factor cannot be told apart
SAME = 1e-7  # remainders below this are all the same
MOST_ALIKE = 8  # values of one cause that are told apart by the steps next to it
RELEVANT = 0.02  # of the worst output's difference: outputs less wrong than this need no explaining
REACH = 18  # ops of a segment, the last ones, that are tried: one layer
WIDTH = 12  # half powers of two up and down from a value that are tried where the op was not recorded
FITTED = 1  # freedom of a value that was computed from what it has to explain
ENLARGED = 3.0  # times what rounding explains may be left: a fault that rounds may go either way itself
WORSE = 1.1  # the factor by which a change may make a right output worse: rounding moves it, too
SURE = 100.0  # log likelihoods by which a change must be better than none where rounding hides the rest
GOLDEN = (5**0.5 - 1) / 2


Limits = Mapping[Key, float]
NONE: Limits = {}


@dataclass(frozen=True, eq=False)  # a value may be an array
class Hypothesis:
    """One cause tried on ops of one step: `explained` is 1 where nothing of the difference in `key` remains.

    `places` are the names of the ops changed; `equals` the ids of causes that explain as much and are as
    stiff; `phase` the one that alone has the fault, where the other has not.
    """

    cause: Cause
    value: Value
    step: int
    key: Key
    explained: float
    places: tuple[str, ...] = ()
    remaining: float = 0.0
    freedom: int = 0
    gain: float = 0.0
    equals: tuple[str, ...] = ()
    phase: str = ""

    def __str__(self) -> str:
        return f"{self.cause.id}{self.cause.says(self.value)}"


def wrongness(replay: Replay, op: Op, step: int) -> dict[Key, float]:
    """||recorded - right|| / ||right|| of every recorded output of `op`: the error the op adds itself."""
    right = replay.compute(op, step)
    return {
        key: residual(replay.trace.read(key, step), array) / max(_norm(array), 1e-300)
        for key, array in right.items()
        if replay.trace.has(key, step)
    }


def explain(replay: Replay, op: Op, step: int, key: Key, limits: Limits = NONE) -> list[Hypothesis]:
    """Every cause that explains the recorded outputs of `op`, the best first.

    `key` is the output that the share is told of, and `limits` the errors (NRMSE) of the op's outputs that
    rounding explains.
    """
    return search(replay, op, step, key, limits).causes


class Search(NamedTuple):
    """The causes that explain an op, best first, and where none does the one that comes nearest."""

    segment: Segment
    causes: list[Hypothesis]
    nearest: Hypothesis | None


def search(replay: Replay, op: Op, step: int, key: Key, limits: Limits = NONE) -> Search:
    """As `explain`, with what there is to say where nothing explains the op."""
    tests = _Tests(Segment(replay, op, step), key, limits)
    near = tests.segment.ops[-REACH:]
    places = [(cause, ops) for cause in causes().values() for ops in _places(cause, near)]
    tried = [best for cause, ops in places if (best := tests.best(cause, ops)) is not None]
    enough = _ranked([best for best in tried if tests.is_enough(best)])
    nearest = max(tried, key=lambda each: each.explained, default=None)
    return Search(tests.segment, enough, None if enough else nearest)


def layers_explained(replay: Replay, hypothesis: Hypothesis) -> list[int]:
    """The layers in which the same change of the same op explains the difference of the same step."""
    layers = []
    for op in replay.graph.ops:
        key = Key(op.out.layer, hypothesis.key.name)
        if op.out.layer is None or key not in op.outputs or not replay.trace.has(key, hypothesis.step):
            continue
        tests = _Tests(Segment(replay, op, hypothesis.step), key)
        named = (each for each in tests.segment.ops if each.out.name in hypothesis.places)
        places = [each for each in named if hypothesis.cause.applies(each)]  # layers are of several kinds
        tried = tests.tried(hypothesis.cause, places, hypothesis.value) if tests.is_off else None
        if tried is not None and tried.explained >= EXPLAINS:
            layers.append(op.out.layer)
    return layers


class _Tests:
    """One segment whose outputs are to be explained, in its own step and in those next to it."""

    def __init__(self, segment: Segment, key: Key, limits: Limits = NONE):
        self.segment, self.key = segment, key
        self._targets = segment.targets(segment.step)
        self._sizes = np.array([segment.replay.trace.read(*target).size for target in self._targets])
        self._off = segment.off({}, self._targets)
        fine = WORSE * self._off if limits else 0 * self._off  # of outputs that were found to be right
        known = [limits.get(name, most) for (name, _), most in zip(self._targets, fine)]
        self._limits = np.nan_to_num(np.array(known, float))
        self._others: list[At] = [
            *(target for step in segment.neighbours() for target in segment.targets(step)),
            *segment.siblings(),
        ]
        self.is_off = bool(self._off.size and self._off.max() > 0)

    def best(self, cause: Cause, places: Sequence[Op]) -> Hypothesis | None:
        """The value of a cause that explains most; None where no value of it changes anything."""
        case = Case(self.segment, places[0])
        with np.errstate(all="ignore"):
            usual = self._tried_all(cause, places, _values(cause.candidates, case), cause.freedom)
            if not any(self._is_done(each) for each in usual):
                fitted = self._tried_all(cause, places, _values(cause.fit, case), cause.freedom + FITTED)
                far = not fitted or not self.segment.targets_of(places)
                usual += fitted
                best = min(usual, key=lambda each: each.remaining, default=None)
                if best is not None and _is_number(best, cause) and not self._is_done(best):
                    usual += self._searched(best, places, far)
        if not usual:
            return None
        best = min(usual, key=lambda each: each.remaining)
        if not self.is_enough(best):
            return best
        alike = [each for each in usual if each.remaining <= max(ALIKE * best.remaining, SAME)]
        every = [self._with_others(each, places) for each in alike[:MOST_ALIKE]]
        return min(every, key=lambda each: each.remaining)

    def tried(self, cause: Cause, places: Sequence[Op], value: Value, freedom: int = 0) -> Hypothesis | None:
        """One value put into all the places; None where it changes nothing or cannot be computed."""
        if isinstance(value, float) and not np.isfinite(value):
            return None
        changed = self._changed(cause, places, value)
        if not changed:
            return None
        try:
            left = self.segment.off(changed, self._targets)
        except (NotRecorded, UserError, ValueError, IndexError):
            return None  # the fault cannot be in an op of these shapes
        names = tuple(dict.fromkeys(op.out.name for op in places))
        explained, remaining = self._share(left), float(np.sqrt(np.sum(left**2)))
        step, gain = self.segment.step, self._gain(left)
        return Hypothesis(cause, value, step, self.key, explained, names, remaining, freedom, gain)

    def _changed(self, cause: Cause, places: Sequence[Op], value: Value) -> dict[Key, Op]:
        model = self.segment.replay.model
        try:
            made = {op.out: (op, cause.change(op, value, model)) for op in places}
        except (UserError, ValueError, IndexError):
            return {}
        return {out: changed for out, (op, changed) in made.items() if changed is not op}

    def _tried_all(
        self, cause: Cause, places: Sequence[Op], values: Iterable[Value], freedom: int
    ) -> list[Hypothesis]:
        tried = (self.tried(cause, places, value, freedom) for value in values)
        return [each for each in tried if each is not None]

    def _share(self, left: np.ndarray) -> float:
        """The share of the difference explained, of the output that it explains least."""
        worst = self._off.max()
        counts = (self._off > RELEVANT * worst) | (left > RELEVANT * worst)
        if (self._off > self._limits).any():
            counts &= (self._off > self._limits) | (left > self._limits)
        if not counts.any():
            return 1.0 if worst else 0.0
        shares = 1 - left[counts] / np.maximum(self._off[counts], RELEVANT * worst)
        return float(max(0.0, np.nan_to_num(shares.min(), nan=0.0)))

    def _gain(self, left: np.ndarray) -> float:
        """How much likelier the outputs are with a change than without it (the log of the ratio).

        For errors that are normal and as large as what is left; 0 where rounding does not explain that much.
        """
        if not (left <= ENLARGED * self._limits).all():
            return 0.0
        with np.errstate(all="ignore"):
            return float(np.nan_to_num(self._sizes * np.log(self._off / left)).sum())

    def is_enough(self, tried: Hypothesis) -> bool:
        """Whether nearly all of the difference is explained, or surely some and the rest is rounding."""
        return tried.explained >= EXPLAINS or tried.gain >= SURE

    def _is_done(self, tried: Hypothesis) -> bool:
        return tried.explained > 1 - 1e-5

    def _searched(self, best: Hypothesis, places: Sequence[Op], far: bool) -> list[Hypothesis]:
        """Values near the best of those tried; `far` from it, too, where there is nothing to fit it to."""
        if far and best.value:
            values = [best.value * 2.0 ** (power / 2) for power in range(-WIDTH, WIDTH + 1) if power]
            near = self._tried_all(best.cause, places, values, best.cause.freedom + FITTED)
            best = min([best, *near], key=lambda each: each.remaining)
        return [best, self._refined(best, places)] if far or best.explained > PROMISING else [best]

    def _refined(self, best: Hypothesis, places: Sequence[Op]) -> Hypothesis:
        """The value near one that explains something, by golden section."""

        def off(value: float) -> float:
            tried = self.tried(best.cause, places, value)
            return float("inf") if tried is None else tried.remaining

        value = golden_section(off, float(best.value))
        tried = self.tried(best.cause, places, value, best.cause.freedom + FITTED)
        return best if tried is None or tried.remaining >= best.remaining else tried

    def _with_others(self, best: Hypothesis, places: Sequence[Op]) -> Hypothesis:
        """What remains elsewhere counts, too: in the steps next to it, for a fault may be one of decode steps
        only, and in whatever else was recorded that the ops of the segment lead to.

        Kernels differ by phase, so a hypothesis is free to be one of this phase alone, at a price.
        """
        phase, targets = self._phase(self.segment.step), self._others
        if not targets:
            return best
        alike = np.array([self._phase(step) == phase for _, step in targets])
        try:
            changed = self._changed(best.cause, places, best.value)
            left, right = (self.segment.off(ops, targets) for ops in (changed, {}))
        except (NotRecorded, UserError, ValueError, IndexError):
            return best
        alone = np.where(alike, left, right)
        all_steps, one_phase = (
            float(np.hypot(best.remaining, np.sqrt(np.sum(off**2)))) for off in (left, alone)
        )
        if all_steps <= max(ALIKE * one_phase, SAME, float(np.linalg.norm(self._limits))):
            return replace(best, remaining=all_steps)
        return replace(best, remaining=one_phase, freedom=best.freedom + FITTED, phase=phase)

    def _phase(self, step: int) -> str:
        return self.segment.replay.trace.steps[step].phase


def _is_number(tried: Hypothesis, cause: Cause) -> bool:
    """Whether its value can be searched: some causes also fit one for each rotary frequency."""
    return cause.continuous and np.ndim(tried.value) == 0


def _values(compute: Callable[[Case], Iterable[Value]], case: Case) -> list[Value]:
    """The values that a cause computes from what was recorded, which may be anything: NaN, or missing."""
    try:
        return list(compute(case))
    except (NotRecorded, ValueError, ArithmeticError, IndexError):
        return []


def _places(cause: Cause, ops: Sequence[Op]) -> Iterator[list[Op]]:
    """The ops to change together: those of one name, all that can have it, or one alone."""
    able = sorted((op for op in ops if cause.applies(op)), key=lambda op: op.out.name)
    groups = [list(group) for _, group in groupby(able, key=lambda op: op.out.name)]
    yield from groups
    if len(groups) > 1:
        yield able
    yield from ([op] for group in groups if len(group) > 1 for op in group)


def _ranked(found: list[Hypothesis]) -> list[Hypothesis]:
    """Best first: what leaves least, and of those that cannot be told apart the stiffest."""
    if not found:
        return []
    least = min(each.remaining for each in found)
    alike = max(ALIKE * least, SAME)
    near = [each for each in found if each.remaining <= alike]
    stiffest = min(each.freedom for each in near)
    equal = sorted((each for each in near if each.freedom == stiffest), key=lambda each: each.remaining)
    ids = tuple(dict.fromkeys(each.cause.id for each in equal))
    told = [replace(each, equals=tuple(id for id in ids if id != each.cause.id)) for each in equal]
    rest = [each for each in found if each not in equal]
    return _once(told + sorted(rest, key=lambda each: (each.remaining > alike, each.remaining)))


def _once(found: Sequence[Hypothesis]) -> list[Hypothesis]:
    """Each cause where it explains most: it may have been tried in several places."""
    return list({each.cause.id: each for each in reversed(found)}.values())[::-1]


def golden_section(off: Callable[[float], float], start: float, factor: float = 4.0) -> float:
    """The value of the sign of `start` near it that makes `off` least, in powers of `factor` around it."""
    if not start:
        return start
    low, high = -1.0, 1.0
    points = [high - GOLDEN * (high - low), low + GOLDEN * (high - low)]
    values = [off(start * factor**point) for point in points]
    for _ in range(40):
        if values[0] <= values[1]:
            high, points[1], values[1] = points[1], points[0], values[0]
            points[0] = high - GOLDEN * (high - low)
            values[0] = off(start * factor ** points[0])
        else:
            low, points[0], values[0] = points[0], points[1], values[1]
            points[1] = low + GOLDEN * (high - low)
            values[1] = off(start * factor ** points[1])
    return start * factor ** points[int(values[1] < values[0])]


def _norm(array: np.ndarray) -> float:
    finite = array[np.isfinite(array)]
    return float(np.sqrt(np.dot(finite, finite)))
