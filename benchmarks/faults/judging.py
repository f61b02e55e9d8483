"""What counts as right of a faulty run: detected, its first faulty op found, its cause named."""

from dataclasses import dataclass

import numpy as np
from tensortrace.analyze.compare import Comparison, compare
from tensortrace.analyze.find import name_causes
from tensortrace.analyze.replay import Replay
from tensortrace.analyze.roundoff import storage
from tensortrace.analyze.segment import Segment
from tensortrace.tracer.gguf import Model
from tensortrace.tracer.names import Key
from tensortrace.tracer.trace import Trace

TOKENS, NEW, TILE = 24, 4, 8
ROUNDING = 1e-5  # of the logits, from which on a fault has an effect


@dataclass(frozen=True)
class Result:
    """One faulty run: whether it shows in the logits, was detected, placed, and named."""

    group: str
    fault: str
    shows: bool
    detected: bool
    first: bool
    rank: int  # of the right cause among those listed, from 1; 0 where it is not
    equal: bool  # named first, or among those that cannot be told from the first
    found: str


def judge(
    group: str, fault: str, ids: set[str], changed: set[Key], pair: tuple[Trace, Trace], model: Model
) -> Result:
    """What compare makes of a faulty trace; `ids` are right, `changed` the outputs of the faulty ops."""
    ours, reference = pair
    found = name_causes(compare(ours, reference), ours, reference, model)
    named = [cause.id for cause in found.causes]
    rank = next((index for index, name in enumerate(named, 1) if name in ids), 0)
    equal = rank == 1 or (bool(rank) and _told_together(found, ids))
    text = found.verdict if found.first is None else f"{found.first.key} of step {found.first.step}: {named}"
    return Result(
        group,
        fault,
        _shows(ours, reference),
        found.verdict == "diverged",
        found.first is not None and _is_right(found, changed, ours, model),
        rank,
        equal,
        text,
    )


def _told_together(found: Comparison, ids: set[str]) -> bool:
    return any(name in found.causes[0].evidence.partition(";")[2] for name in ids)


def _is_right(found: Comparison, changed: set[Key], trace: Trace, model: Model) -> bool:
    """Whether a faulty op is the first divergence's, or one of those not recorded that lead to it."""
    assert found.first is not None
    replay = Replay(trace, model)
    op = replay.graph.producer(found.first.key)
    if op is None or found.noise is None:
        return False
    unseen = found.noise.segment(found.first.key)[1]  # on either side
    return bool(changed & {*unseen, *(each.out for each in Segment(replay, op, found.first.step).ops)})


def _shows(ours: Trace, reference: Trace) -> bool:
    key = Key(None, "logits")
    for step in reference.flushed:
        if step.index >= len(ours.flushed) or not np.array_equal(
            ours.tokens[: step.kv_len], reference.tokens[: step.kv_len]
        ):
            return True  # another token was generated
        a, b = (trace.read(key, step.index).astype(float) for trace in (ours, reference))
        if not np.linalg.norm(a - b) <= max(ROUNDING, _stored(ours, reference, b)) * np.linalg.norm(b):
            return True
    return False


def _stored(ours: Trace, reference: Trace, logits: np.ndarray) -> float:
    """How far the rounding of their files may put two recordings of one row of logits apart."""
    types = [trace.tensors[Key(None, "logits")].dtype for trace in (ours, reference)]
    rms = np.sqrt(np.mean(logits**2))
    return float(np.hypot(*(storage(dtype, rms, np.array(logits.size)) for dtype in types)))
