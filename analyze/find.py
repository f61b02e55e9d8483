"""From faulty ops to their causes: which side is wrong, in which ops, and what change of an op explains it.

Needs the model file.  What each side recorded is verified against its own inputs; an op that does not follow
from them is at fault, be it ours or the reference's.  All faults of a trace are found, not the first alone.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from ..tracer.errors import TraceError, UserError
from ..tracer.gguf import Model
from ..tracer.graph import Op
from ..tracer.names import Key
from ..tracer.trace import Trace
from .compare import Comparison
from .established import established
from .findings import UNKNOWN, Finding, Place
from .hypothesis import EXPLAINS, Hypothesis, Search, layers_explained, search
from .noise import DIVERGED, INHERITED
from .pattern import describe
from .pretokens import cut_otherwise
from .replay import NotRecorded, Replay
from .samples import sample_of
from .tokens import TOKENS
from .verify import Verification, verify

LISTED = 3  # causes told of one op
ALIKE = 0.02  # values of a cause that differ by less are the same
TRIES = 3  # layers in which an op of one name is looked at in vain, before the others are left alone


def verify_and_explain(trace: Trace, model: Model) -> Verification:
    """`verify`, with the causes of what is wrong and the shape of the first fault."""
    found = verify(trace, model)
    if found.first is None:
        return found
    return replace(found, causes=[*causes_of(found)], evidence=[*_evidence_of(found)])


def _evidence_of(found: Verification) -> Iterator[str]:
    key, step = found.wrong[0]
    index = found.keys.index(key)
    error, noise = float(found.measured.nrmse[index, step]), float(found.judged.noise[index, step])
    yield f"off by {error:.2e} (NRMSE) from its replay in float64, where rounding explains {noise:.1e}"
    yield from describe(sample_of(found.trace, found.model, key, step), noise)


# ---- the causes of one trace


def causes_of(found: Verification, who: str = "") -> list[Finding]:
    """The causes of everything that is wrong by itself, by place and then by how much they explain."""
    first: dict[Key, int] = {}
    for key, step in found.wrong:
        first.setdefault(key, step)
    replay, merged = Replay(found.trace, found.model), _Merged()
    vain: dict[str, int] = {}
    while first:
        key, step = next(iter(first.items()))
        del first[key]
        if vain.get(key.name, 0) >= TRIES:
            continue
        op, searched = found.op(key), _searched(found, replay, key, step)
        causes = searched.causes[:LISTED] if searched else []
        explained = {op.out.layer}  # the op's other outputs were looked at with this one
        for hypothesis in causes:
            layers = layers_explained(replay, hypothesis)
            said = _evidence(who, replay, hypothesis, op, layers)
            cause, share = hypothesis.cause, round(hypothesis.explained, 6)
            finding = Finding(cause.id, step, *key, share, said, cause.fix)
            merged.add(finding, hypothesis.value)
            if hypothesis is causes[0]:
                explained |= {*layers}
        names = {output.name for output in op.outputs}
        first = {k: at for k, at in first.items() if k.name not in names or k.layer not in explained}
        if not causes:
            vain[key.name] = vain.get(key.name, 0) + 1
            told = established(searched, key) if searched else f"{key} does not follow from its own inputs"
            finding = Finding(UNKNOWN, step, *key, 0.0, f"{who}: {told}" if who else told)
            merged.add(finding, key.name)
    return merged.findings


def _searched(found: Verification, replay: Replay, key: Key, step: int) -> Search | None:
    if not replay.trace.has(key, step):
        return None  # of a log: it shows some values only
    op = found.op(key)
    known = {name: found.keys.index(name) for name in op.outputs if name in found.keys}
    limits = {name: float(found.judged.noise[index, step]) for name, index in known.items()}
    try:
        return search(replay, op, step, key, limits)
    except NotRecorded:
        return None


class _Merged:
    """Findings of the same cause with the same value as one, at the place where it shows first."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self._values: list[Any] = []

    def add(self, finding: Finding, value: Any) -> None:
        for index, (known, its) in enumerate(zip(self.findings, self._values)):
            if known.id == finding.id and _alike(its, value):
                said = f"{known.evidence}; {finding.evidence}"
                self.findings[index] = replace(known, evidence=said)
                return
        self.findings.append(finding)
        self._values.append(value)


def _alike(one: Any, other: Any) -> bool:
    """Whether two values are one: those that were fitted differ by noise."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=ALIKE)
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return one.shape == other.shape and np.allclose(one, other, rtol=ALIKE, atol=0)
    return str(one) == str(other)


def _evidence(who: str, replay: Replay, hypothesis: Hypothesis, op: Op, layers: list[int]) -> str:
    of = sum(1 for other in replay.graph.ops if other.out.name == op.out.name)
    where = f" in {_ranges(layers)} (of {of})" if layers else ""
    said = f"{who}: " * bool(who) + f"{hypothesis} explains {hypothesis.explained:.4%} of the "
    said += f"difference in {hypothesis.key.name}{where}"
    if hypothesis.phase:
        said += f", in {hypothesis.phase} steps alone"
    if hypothesis.explained < EXPLAINS:
        said += f", and leaves what rounding does (e^{hypothesis.gain:.0f} times as likely as no fault)"
    if hypothesis.places != (op.out.name,):
        said += f", if it is in {', '.join(hypothesis.places)}"
    if hypothesis.equals:
        said += f"; {', '.join(hypothesis.equals)} would give the same"
        said += f": to tell them apart record {hypothesis.cause.tell}" if hypothesis.cause.tell else ""
    return said


def _ranges(layers: list[int]) -> str:
    """[0, 1, 2, 7] -> `layers 0-2, 7`."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    text = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    return f"layer{'s' if len(layers) > 1 else ''} {text}"


# ---- two traces


def name_causes(comparison: Comparison, a: Trace, b: Trace, model: Model) -> Comparison:
    """The comparison with both sides verified wherever they differ; unchanged where they don't.

    Says which side is at fault, and why; `added_a` and `added_b` are the errors that each side's ops add.
    """
    if comparison.verdict == "incomparable":
        return _cut_otherwise(comparison, a, b, model)
    if comparison.first is None or comparison.noise is None:
        return comparison
    status = comparison.noise.status
    apart = [key for key, row in zip(comparison.alignment.keys, status) if (row >= INHERITED).any()]
    try:
        pairs = {"ours": a, "the reference": b}
        sides = {
            who: verify(side, model, targets=_targets(comparison, apart, side)) for who, side in pairs.items()
        }
    except UserError as error:
        if isinstance(error, TraceError):
            raise
        return _with(comparison, [], f"not replayed: {error}")
    told = _arbitration(comparison, sides)
    found = [finding for who, side in sides.items() for finding in causes_of(side, who)]
    added = [_by_our_steps(comparison, side) for side in sides.values()]
    return replace(_with(comparison, found, told), added_a=added[0], added_b=added[1])


def _cut_otherwise(comparison: Comparison, a: Trace, b: Trace, model: Model) -> Comparison:
    """Where the two were fed other tokens of one text: which side's are not the model's."""
    told = (cut_otherwise(trace, model, who) for trace, who in ((a, "ours"), (b, "the reference")))
    found = [finding for finding in told if finding is not None]
    if not found:
        return comparison
    sentence = f"the two parted before the model ran: {found[0].evidence}"
    evidence = [finding.evidence for finding in found]
    first = Place(0, None, TOKENS, "tokenizer")
    return replace(
        comparison, verdict="diverged", sentence=sentence, first=first, evidence=evidence, causes=found
    )


def _targets(comparison: Comparison, apart: list[Key], trace: Trace) -> list[Key]:
    """What is to be verified of one side: where the two differ, and what the other did not record."""
    return [*apart, *(key for key in trace.tensors if key not in comparison.alignment.index)]


def _arbitration(comparison: Comparison, sides: dict[str, Verification]) -> str:
    """Which side is wrong where the two part first."""
    assert comparison.first is not None
    key, said, wrong = comparison.first.key, [], []
    for who, side in sides.items():
        error, noise, status = _at_first(comparison, side)
        if np.isnan(error):
            reason = side.recompute.lost.get(key) or side.recompute.misfits.get(key)
            said.append(f"{who} cannot be replayed" + (f" ({reason})" if reason else ""))
            continue
        said.append(f"{who} is off by {error:.1e} (rounding explains {noise:.1e})")
        wrong += [who] if status == DIVERGED else []
    if all(np.isnan(_at_first(comparison, side)[0]) for side in sides.values()):
        return f"{key} could not be replayed: {'; '.join(said)}"
    text = f"{key} replayed in float64 from its own inputs: {', '.join(said)}"
    if wrong:
        return f"{text}: {' and '.join(wrong)} {'is' if len(wrong) == 1 else 'are'} wrong"
    return f"{text}: neither op is wrong by itself, so their inputs or weights differ"


def _at_first(comparison: Comparison, side: Verification) -> tuple[float, float, int]:
    """Error, noise and status of one side at the first divergence; NaN where it was not verified."""
    assert comparison.first is not None
    key, steps = comparison.first.key, _steps_of(comparison, side, comparison.first.step)
    if key not in side.keys or not len(steps):
        return np.nan, np.nan, 0
    index = side.keys.index(key)
    error = np.where(side.measured.compared[index], side.measured.nrmse[index], np.nan)[steps]
    if np.isnan(error).all():
        return np.nan, np.nan, int(side.status[index, steps].max())
    worst = int(np.nanargmax(error))
    return (
        float(error[worst]),
        float(side.judged.noise[index, steps[worst]]),
        int(side.status[index, steps].max()),
    )


def _steps_of(comparison: Comparison, side: Verification, step: int) -> np.ndarray:
    """The steps of one side that feed the tokens of one of ours."""
    ours = comparison.alignment.a.steps[step]
    meets = (s.index for s in side.recompute.source.steps if s.start < ours.kv_len and ours.start < s.kv_len)
    return np.array(list(meets), int)


def _by_our_steps(comparison: Comparison, side: Verification) -> np.ndarray:
    """The error that each op of one side adds [tensor, step], by the tensors and steps of the comparison."""
    keys = comparison.alignment.keys
    added = np.full((len(keys), comparison.alignment.steps), np.nan)
    rows = [(keys.index(key), index) for index, key in enumerate(side.keys) if key in keys]
    if not rows:
        return added
    to, at = (list(column) for column in zip(*rows))
    error = np.where(side.measured.compared, side.measured.nrmse, np.nan)
    for step in range(comparison.alignment.steps):
        steps = _steps_of(comparison, side, step)
        if len(steps):
            added[to, step] = np.fmax.reduce(error[np.ix_(at, steps)], axis=1)
    return added


def _with(comparison: Comparison, causes: list[Finding], told: str) -> Comparison:
    return replace(comparison, causes=causes or comparison.causes, evidence=[*comparison.evidence, told])
