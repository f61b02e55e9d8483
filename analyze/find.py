"""From the first divergence to its cause: which side is wrong, and what change of the op explains it.

Needs the model file.  The op is replayed in float64 from the inputs that each side recorded; the side that
does not reproduce its own output is the one at fault, be it ours or the reference.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..tracer.gguf import Model
from ..tracer.graph import Op
from ..tracer.names import Key
from ..tracer.trace import Trace
from .compare import UNKNOWN, Comparison, Finding
from .hypothesis import Hypothesis, explain, layers_explained, wrongness
from .partial import is_partial
from .replay import NotRecorded, Replay

LISTED = 3  # causes told of one side


@dataclass(frozen=True)
class Side:
    """One trace at the first divergence: how far its op is from what its own inputs give (NRMSE)."""

    name: str
    replay: Replay
    step: int
    error: float

    def is_wrong(self, limit: float) -> bool:
        return not self.error <= limit


def name_causes(comparison: Comparison, a: Trace, b: Trace, model: Model) -> Comparison:
    """The comparison with the causes of its first divergence; unchanged where there is none."""
    if comparison.first is None or comparison.noise is None:
        return comparison
    key = comparison.first.key
    found: list[Finding] = []
    try:
        sides = list(_sides(comparison, a, b, model))
    except NotRecorded as error:
        return _with(comparison, [], f"the op could not be replayed: {error}")
    if not sides:
        why = f"it is read off a log, or no tensor of this model's architecture ({model.arch})"
        return _with(comparison, [], f"{key} cannot be replayed: {why}")
    index = comparison.alignment.keys.index(key)
    limit = float(comparison.noise.noise[index, comparison.first.step])
    told = "replayed in float64 from its own inputs, " + ", ".join(
        f"{side.name} is off by {side.error:.1e}" for side in sides
    )
    wrong = [side for side in sides if side.is_wrong(limit)]
    for side in wrong:
        found += _findings(side, key, comparison)
    if not wrong and len(sides) < 2:
        told += ": so the other side is wrong, which cannot be replayed (a log, or other steps)"
    elif not wrong:
        told += ": neither op is wrong by itself, so their inputs or weights differ"
    return _with(comparison, found, told)


def _sides(comparison: Comparison, a: Trace, b: Trace, model: Model) -> Iterator[Side]:
    assert comparison.first is not None
    key, step = comparison.first.key, a.steps[comparison.first.step]
    same = (s.index for s in b.steps if (s.start, s.n_tokens) == (step.start, step.n_tokens))
    for name, trace, index in (("ours", a, step.index), ("the reference", b, next(same, None))):
        if index is None or not trace.has(key, index) or is_partial(trace.tensors[key]):
            continue  # fed in other steps, so that it cannot be replayed step by step; or a log
        replay = Replay(trace, model)
        op = replay.graph.producer(key)
        if op is not None:
            yield Side(name, replay, index, wrongness(replay, op, index)[key])


def _findings(side: Side, key: Key, comparison: Comparison) -> Iterator[Finding]:
    op = side.replay.graph.producer(key)
    assert op is not None
    assert comparison.first is not None
    hypotheses = explain(side.replay, op, side.step, key)[:LISTED]
    for hypothesis in hypotheses:
        evidence = _evidence(side, hypothesis, op)
        yield Finding(
            hypothesis.cause.id,
            comparison.first.step,
            *key,
            round(hypothesis.explained, 6),
            evidence,
            hypothesis.cause.fix,
        )
    if not hypotheses:
        told = f"{side.name}: {key} does not follow from its own inputs, and no known cause explains it"
        yield Finding(UNKNOWN, comparison.first.step, *key, 0.0, told)


def _evidence(side: Side, hypothesis: Hypothesis, op: Op) -> str:
    value = "" if hypothesis.value is None else f" with the value {hypothesis.value:.6g}"
    layers = layers_explained(side.replay, hypothesis)
    of = sum(1 for other in side.replay.graph.ops if other.out.name == op.out.name)
    where = f" in {_ranges(layers)} (of {of})" if layers else ""
    return (
        f"{side.name}: {hypothesis.cause.id}{value} explains {hypothesis.explained:.4%} of the difference in "
        f"{hypothesis.key.name}{where}"
    )


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


def _with(comparison: Comparison, causes: list[Finding], told: str) -> Comparison:
    return replace(comparison, causes=causes or comparison.causes, evidence=[*comparison.evidence, told])
