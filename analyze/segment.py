"""What leads from the nearest recorded tensors to an op's recorded outputs, replayed with ops changed.

Where the inputs of an op were not recorded, its fault may sit in any of the ops that they come from: those
ops and the op itself are one segment, and a change of any of them can be tried.
"""

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

import numpy as np

from ..tracer.graph import POSITIONS, TOKENS, Op
from ..tracer.names import NAMES, Key
from .blocks import MASKED
from .replay import NotRecorded, Replay

At = tuple[Key, int]  # a tensor of a step
WRONG = 0.01  # of the largest error of a row: rows that are off by less are right
CLASH = 3.0  # what a number in place of NaN, or a masked key in place of a score, counts as, in RMS


class Segment:
    """The ops between recorded tensors and the outputs of `op`, in execution order."""

    def __init__(self, replay: Replay, op: Op, step: int):
        self.replay, self.op, self.step = replay, op, step
        between = self._between()
        self.ops = [each for each in replay.graph.ops if each.out in between]
        self._right = _Run(self, {})

    def _between(self) -> set[Key]:
        found, waiting = {self.op.out}, [self.op]
        while waiting:
            for key in waiting.pop().inputs:
                producer = self.replay.graph.producer(key)
                recorded = self.replay.reads(key, self.step)
                if producer is not None and not recorded and producer.out not in found:
                    found.add(producer.out)
                    waiting.append(producer)
        return found

    def targets(self, step: int) -> list[At]:
        """The recorded outputs of the op."""
        return [(key, step) for key in self.op.outputs if self.replay.trace.has(key, step)]

    def targets_of(self, ops: Iterable[Op]) -> list[At]:
        """The recorded ones of the ops' outputs."""
        return [(key, self.step) for op in ops for key in op.outputs if self.replay.trace.has(key, self.step)]

    def neighbours(self) -> list[int]:
        """The step before and the step after, where the op's outputs were recorded."""
        last = len(self.replay.trace.steps)
        near = (self.step - 1, self.step + 1)
        return [step for step in near if 0 <= step < last and self.targets(step)]

    def siblings(self) -> list[At]:
        """What else was recorded of the segment's ops, and of others that read what they compute."""
        made = {each.out for each in self.ops if not self.replay.reads(each.out, self.step)}
        ops = [*self.ops]
        for op in self.replay.graph.ops:
            if op.out not in made and made & {*op.inputs}:
                ops.append(op)
                made |= set() if self.replay.reads(op.out, self.step) else {op.out}
        return self.targets_of(op for op in ops if op.out != self.op.out)

    def right(self, key: Key, step: int) -> np.ndarray:
        """A tensor as it should be, given what was recorded."""
        op = self.replay.graph.producer(key)
        assert op is not None
        return self._right.outputs(op, step)[key]

    def value(self, key: Key, step: int) -> np.ndarray:
        """A tensor as recorded, or as it should be, given what was."""
        return self._right.value(key, step)

    def off(self, changed: Mapping[Key, Op], targets: Iterable[At]) -> np.ndarray:
        """How far each target is from what the ops give when some are `changed`, relative to its norm."""
        run = _Run(self, changed) if changed else self._right
        found = []
        for key, step in targets:
            op = self.replay.graph.producer(key)
            assert op is not None
            made = run.outputs(op, step)
            if key not in made:  # a fault need not say what becomes of every output
                made = self._right.outputs(op, step)
            recorded = self.replay.trace.unclipped(key, self.replay.trace.read(key, step), made[key])
            found.append(distance(recorded, made[key]))
        return np.array(found)


class Case:
    """One op of a segment that a cause may fit its values to."""

    def __init__(self, segment: Segment, op: Op):
        self._segment, self.op, self.step, self.replay = segment, op, segment.step, segment.replay
        self.model = segment.replay.model

    def recorded(self, name: str = "") -> np.ndarray | None:
        """An output of the op as recorded, in float64 (its main one without a name); None if it was not."""
        key = self._key(name)
        if not self.replay.trace.has(key, self.step):
            return None
        return self.replay.trace.read(key, self.step).astype(np.float64)

    def right(self, name: str = "") -> np.ndarray:
        """What the output should be."""
        return self._segment.right(self._key(name), self.step)

    def _key(self, name: str) -> Key:
        return Key(self.op.out.layer, name) if name else self.op.out

    @cached_property
    def inputs(self) -> list[np.ndarray]:
        """The op's inputs; of those in the KV cache the rows of all tokens so far."""
        run = self._segment._right
        return [
            run.history(key, self.step) if index in self.op.history else run.value(key, self.step)
            for index, key in enumerate(self.op.inputs)
        ]

    def value(self, key: Key, step: int) -> np.ndarray:
        """A tensor of any step as recorded, or as it should be, given what was."""
        return self._segment.value(key, step)

    def first_wrong(self) -> int:
        """The first row [token] of the step at which what the segment gives is off; 0 where all are."""
        for key, step in self._segment.targets(self.step):
            axis = NAMES[key.name].axes.index("query" if "query" in NAMES[key.name].axes else "token")
            recorded, right = (
                self.replay.trace.read(key, step).astype(np.float64),
                self._segment.right(key, step),
            )
            with np.errstate(invalid="ignore"):
                off = np.abs(np.moveaxis(recorded - right, axis, 0).reshape(recorded.shape[axis], -1))
            rows = np.nan_to_num(off).max(-1)
            if rows.max() > 0:
                return int(np.argmax(rows > WRONG * rows.max()))
        return 0

    def weight(self, index: int = 0) -> np.ndarray:
        return self.model.weight(self.op.weights[index], np.float64)


class _Run:
    """One evaluation of a segment; what no change reaches is taken from the right one."""

    def __init__(self, segment: Segment, changed: Mapping[Key, Op]):
        self._segment, self._replay, self._changed = segment, segment.replay, changed
        self._memo: dict[At, dict[Key, np.ndarray]] = {}
        self._reached = self._downstream()

    def _downstream(self) -> set[Key]:
        reached: set[Key] = set()
        for op in self._replay.graph.ops:
            changed = self._changed.get(op.out, op)
            if changed is not op or any(self._made_by(key) in reached for key in changed.inputs):
                reached.add(op.out)
        return reached

    def _made_by(self, key: Key) -> Key | None:
        if self._replay.reads(key, self._segment.step):
            return None
        producer = self._replay.graph.producer(key)
        return None if producer is None else producer.out

    def value(self, key: Key, step: int) -> np.ndarray:
        producer = self._replay.graph.producer(key)
        if key in (TOKENS, POSITIONS) or producer is None or self._replay.reads(key, step):
            return self._replay.value(key, step)
        made = self.outputs(producer, step)[key]
        trace = self._replay.trace
        return trace.unclipped(key, trace.read(key, step), made) if trace.has(key, step) else made

    def history(self, key: Key, step: int) -> np.ndarray:
        if self._replay.reads(key, step):
            return self._replay.history(key, step)
        if len(self._replay.trace.rows(step)) < self._replay.trace.steps[step].n_tokens:
            raise NotRecorded(f"{self._replay.trace.path}: {key} is recorded for some tokens only")
        return np.concatenate([self.value(key, earlier) for earlier in range(step + 1)])

    def outputs(self, op: Op, step: int) -> dict[Key, np.ndarray]:
        """Every output of an op that the trace has, and op.out."""
        if self._changed and op.out not in self._reached:
            return self._segment._right.outputs(op, step)
        at = (op.out, step)
        if at not in self._memo:
            self._memo[at] = self._compute(self._changed.get(op.out, op), step)
        return self._memo[at]

    def _compute(self, op: Op, step: int) -> dict[Key, np.ndarray]:
        if not len(self._replay.trace.rows(step)):
            raise NotRecorded(f"{self._replay.trace.path}: nothing is recorded of step {step}")
        inputs = [
            self.history(key, step) if index in op.history else self.value(key, step)
            for index, key in enumerate(op.inputs)
        ]
        weights = [self._replay.model.weight(name, np.float64) for name in op.weights]
        params: dict[str, Any] = dict(op.params)
        if len(op.outputs) > 1:
            params["want"] = {key.name for key in op.outputs if self._replay.trace.has(key, step)} - {
                op.out.name
            }
        with np.errstate(all="ignore"):  # a faulty variant may overflow: that is a result
            result = op.compute()(*inputs, *weights, **params)
        if not isinstance(result, dict):
            return {op.out: result}
        named = {Key(op.out.layer, name): array for name, array in result.items() if name != "out"}
        return {**named, op.out: result["out"]}


def distance(recorded: np.ndarray, computed: np.ndarray) -> float:
    """||recorded - computed|| / ||recorded||, with CLASH times the RMS for entries finite on one side only.

    Infinite where the shapes differ.  Scores at or below MASKED are masked keys, whatever an engine writes.
    """
    if recorded.shape != computed.shape:
        return float("inf")
    recorded = recorded.astype(np.float64)
    with np.errstate(all="ignore"):
        both = np.isfinite(recorded) & np.isfinite(computed) & (recorded > MASKED) & (computed > MASKED)
        away = (recorded <= MASKED) & (computed <= MASKED) | np.isnan(recorded) & np.isnan(computed)
        clashes = int((~both & ~away & (recorded != computed)).sum())
        d, size = recorded[both] - computed[both], recorded[np.isfinite(recorded) & (recorded > MASKED)]
        squares = float(size @ size)
        mean_square = squares / len(size) if squares else 1.0
        total = float(d @ d) + clashes * CLASH**2 * mean_square
    return (total / (squares or 1.0)) ** 0.5
