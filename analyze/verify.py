"""Verify one trace: every recorded tensor against its op replayed in float64 from what the op read.

verification = verify(Trace("ours.h5"), Model("model.gguf"))
verification.verdict, verification.first, verification.to_json()

An op is judged by the error that it adds: what it inherited is in its recorded inputs already.
"""

import math
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from ..tracer.errors import UserError
from ..tracer.gguf import Model
from ..tracer.graph import Op
from ..tracer.names import Key
from ..tracer.text import visible
from ..tracer.trace import Trace
from .findings import EXIT_CODES, SHOWN, Finding, Place, Row, finite, rows_of
from .judge import Judge, Judged
from .metrics import Measured
from .noise import DIVERGED, INHERITED, MATCH, ROUNDING
from .partial import is_partial
from .recompute import Recompute


@dataclass(frozen=True)
class Verification:
    """What came of it.  Figures and `status` are arrays [tensor, step], tensors as in `keys`.

    a is what was recorded, b what the op gives in float64.
    """

    trace: Trace
    model: Model
    recompute: Recompute
    judged: Judged
    status: np.ndarray
    causes: list[Finding] = field(default_factory=list)
    evidence: list[str] = field(default_factory=list)

    @property
    def keys(self) -> list[Key]:
        return self.recompute.keys

    @property
    def measured(self) -> Measured:
        return self.judged.measured

    @property
    def exit_code(self) -> int:
        """As diff's: 0 nothing wrong, 1 a faulty op, 2 nothing could be replayed."""
        return EXIT_CODES[self.verdict]

    @cached_property
    def verdict(self) -> str:
        """`match` (to the bit), `rounding`, `diverged`, or `incomparable`: nothing was verified."""
        if not self.measured.compared.any():
            return "incomparable"
        if (self.status >= INHERITED).any():
            return "diverged"
        return "match" if (self.status[self.measured.compared] == MATCH).all() else "rounding"

    @cached_property
    def wrong(self) -> list[tuple[Key, int]]:
        """Every tensor that does not follow from what its op read: by step, then in execution order."""
        steps, keys = np.nonzero((self.status == DIVERGED).T)
        return [(self.keys[index], int(step)) for index, step in zip(keys, steps)]

    @property
    def first(self) -> Place | None:
        """The first faulty op."""
        if not self.wrong:
            return None
        key, step = self.wrong[0]
        return Place(step, key.layer, key.name, self.op(key).kind)

    @property
    def position(self) -> int | None:
        """The place of the first faulty op among `rows`."""
        if self.first is None:
            return None
        compared, index = self.measured.compared, self.keys.index(self.first.key)
        return int(compared[:, : self.first.step].sum() + compared[:index, self.first.step].sum())

    def op(self, key: Key) -> Op:
        """The op that computes a tensor."""
        op = self.recompute.graph.producer(key)
        assert op is not None
        return op

    # ---- how much was verified, and how finely

    @property
    def coverage(self) -> dict[str, int]:
        """Tensors, counted for each step: verified, recorded but not to be replayed, and of other shapes."""
        source, compared = self.recompute.source, int(self.measured.compared.sum())
        misfit = sum(int(source.has(key).sum()) for key in self.recompute.misfits)
        recorded = sum(int(source.has(key).sum()) for key in source.specs)
        return {
            "compared": compared,
            "only_a": recorded - compared - misfit,
            "only_b": 0,
            "incomparable": misfit,
        }

    @cached_property
    def resolution(self) -> dict[str, int]:
        """How many ops there are, are covered, are judged alone, and the most that are judged as one."""
        segments = list(self.segments.values())
        return {
            "ops": len(self.recompute.graph.ops),
            "covered": len({op.out for segment in segments for op in segment}),
            "alone": len({segment[0].out for segment in segments if len(segment) == 1}),
            "longest": max(map(len, segments), default=0),
        }

    @cached_property
    def segments(self) -> dict[Key, list[Op]]:
        """The ops that are replayed as one for each verified tensor."""
        verified = [self.keys[index] for index in np.flatnonzero(self.measured.compared.any(1))]
        return {key: self.recompute.between(key) for key in verified}

    @property
    def notes(self) -> list[str]:
        """What a reader should know."""
        header, said = self.trace.header, []
        if header.model_sha256 and header.model_sha256 != self.model.sha256:
            said.append(
                f"the trace was made with another model file ({visible(header.model_name) or 'unnamed'}, "
                f"SHA-256 {visible(header.model_sha256[:8])}…): differences may come from the weights"
            )
        if not self.trace.complete:
            done = len(self.recompute.source.steps)
            said.append(f"the recording is incomplete: {done} of {len(self.trace.steps)} steps")
        for reasons in (self.recompute.lost, self.recompute.misfits):
            for reason in dict.fromkeys(reasons.values()):
                named = [str(key) for key, why in reasons.items() if why == reason]
                said.append(f"{_listed(named)} could not be replayed: {visible(reason)}")
        return said

    # ---- in words

    @property
    def sentence(self) -> str:
        if self.verdict == "incomparable":
            return "nothing was verified: no recorded tensor follows from others by this model's operations"
        place, resolution = self.first, self.resolution
        scope = f"{resolution['covered']} of {resolution['ops']} operations"
        if place is None:
            if self.verdict == "diverged":
                return "tensors differ from their replay, all of them by what they inherit"
            return f"{scope} do what the model says, as far as rounding explains"
        others = {key for key, _ in self.wrong} - {place.key}
        more = f"; {len(others)} more are wrong by themselves: {_listed(map(str, others))}" if others else ""
        what = self.segment_text(place.key)
        return f"the first fault is in step {place.step} ({self._phase(place.step)}): {what}{more}"

    def segment_text(self, key: Key) -> str:
        """Where the fault is that a tensor shows: in its op, or in one of several."""
        ops = self.recompute.between(key)
        name = visible(str(key))
        if len(ops) == 1:
            return f"{name} does not follow from what its op ({ops[0].kind}) read"
        reads = _listed(map(str, self.recompute.reads(ops))) or "the tokens"
        between = _listed(str(op.out) for op in ops)
        return f"{name} does not follow from {reads}: the fault is in one of {len(ops)} operations, {between}"

    def _phase(self, step: int) -> str:
        return self.trace.steps[step].phase

    # ---- figures

    def rows(self, start: int = 0, stop: int | None = None) -> list[Row]:
        """The verified tensors by step, then in execution order; from number `start` to before `stop`."""
        added = np.where(self.measured.compared, self.measured.nrmse, np.nan)
        judged = (added, self.judged.noise, self.status)
        return rows_of(self.keys, self.measured, judged, (added, None), self._total(), start, stop)

    def _total(self) -> np.ndarray:
        """How many elements the tensors of a log have [tensor, step]; 0 for others, which are whole."""
        total = np.zeros(self.status.shape, int)
        for index, spec in enumerate(self.trace.tensors[key] for key in self.keys):
            if is_partial(spec):
                sizes = (spec.shape(len(self.trace.rows(s.index)), s.kv_len) for s in self.trace.steps)
                total[index] = list(map(math.prod, sizes))
        return total

    def to_json(self) -> dict[str, Any]:
        """The stable form, with the keys of a comparison; NaN and infinities are None."""
        return {
            "verdict": self.verdict,
            "sentence": self.sentence,
            "scenario": None,
            "first_divergence": None if self.first is None else asdict(self.first),
            "evidence": self.evidence,
            "causes": [asdict(cause) for cause in self.causes],
            "coverage": self.coverage,
            "resolution": self.resolution,
            "notes": self.notes,
            "tensors": [
                {name: finite(value) for name, value in row._asdict().items()}
                | {"segment": [str(op.out) for op in self.segments[row.key]]}
                for row in self.rows()
            ],
        }


def verify(
    trace: Trace, model: Model, *, targets: Collection[Key] | None = None, workers: int | None = None
) -> Verification:
    """Replay what `trace` recorded with the weights of `model`; memory stays bounded whatever its size.

    `targets` are the tensors to judge (None: all).  UserError where the model is of another architecture, or
    the trace holds no finished step.
    """
    stated = trace.header.architecture
    if stated and stated != model.arch:
        raise UserError(f"{trace.path} is of architecture {visible(stated)}, {model.path} of {model.arch}")
    recompute = Recompute(trace, model, targets)
    judge = Judge(recompute)
    for outcome in recompute.run(judge, workers):
        judge.add(outcome)
    judged = judge.judged()
    return Verification(trace, model, recompute, judged, _status(recompute, judged))


def _status(recompute: Recompute, judged: Judged) -> np.ndarray:
    """The status of each tensor in each step; below a wrong tensor of the same ops others inherit."""
    compared = judged.measured.compared
    fine = np.where(judged.measured.equal, MATCH, ROUNDING)
    status = np.where(compared, np.where(judged.excess <= 1, fine, DIVERGED), 0).astype(np.int8)
    index = {key: i for i, key in enumerate(recompute.keys)}
    for key, i in index.items():
        if not (status[i] == DIVERGED).any():
            continue
        above = [index[name] for name in _shared(recompute, key) if name in index]
        if above:
            tainted = np.logical_or.accumulate((status[above] >= INHERITED).any(0))
            status[i] = np.where((status[i] == DIVERGED) & tainted, INHERITED, status[i])
    return status


def _shared(recompute: Recompute, key: Key) -> list[Key]:
    """Other outputs of the ops that are replayed for `key`, as scores are of attention; of its own op those
    that come before it."""
    found: list[Key] = []
    for op in recompute.between(key):
        outputs = op.outputs
        found += outputs[: outputs.index(key)] if key in outputs else outputs
    return found


def _listed(names: Any) -> str:
    known = [visible(name) for name in names]
    return ", ".join(known[:SHOWN]) + (f" and {len(known) - SHOWN} more" if len(known) > SHOWN else "")
