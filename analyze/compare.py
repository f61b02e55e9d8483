"""Compare two traces: find the first operation at which they part by more than rounding, and say how.

comparison = compare(Trace("ours.h5"), Trace("reference.h5"))
comparison.verdict, comparison.first, comparison.to_json()
"""

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ..tracer.text import visible
from ..tracer.trace import Trace
from .align import Alignment, align
from .findings import EXIT_CODES, SHOWN, UNKNOWN, Finding, Place, Row, finite, rows_of
from .metrics import Measured, measure
from .noise import DIVERGED, INHERITED, MATCH, Noise
from .partial import estimate_lengths
from .pattern import describe, sample
from .scenario import Scenario, decide
from .tokens import TOKENS


@dataclass(frozen=True)
class Comparison:
    """What came of it: `sentence` says it in plain words, `evidence` what the difference looks like."""

    verdict: str
    sentence: str
    alignment: Alignment
    coverage: dict[str, int]
    measured: Measured | None = None
    noise: Noise | None = None
    first: Place | None = None
    evidence: list[str] = field(default_factory=list)
    scenario: Scenario = field(default_factory=Scenario)
    causes: list[Finding] = field(default_factory=list)
    added_a: np.ndarray | None = None  # [tensor, step]: the error that each op adds, by replay with the model
    added_b: np.ndarray | None = None

    @property
    def exit_code(self) -> int:
        """As diff's: 0 nothing wrong, 1 different, 2 could not be compared."""
        return EXIT_CODES[self.verdict]

    @property
    def notes(self) -> list[str]:
        """What a reader should know of the two traces."""
        return self.alignment.notes

    @property
    def position(self) -> int | None:
        """The place of the first divergence among `rows`."""
        if self.first is None or self.measured is None:
            return None
        compared, index = self.measured.compared, self.alignment.index[self.first.key]
        return int(compared[:, : self.first.step].sum() + compared[:index, self.first.step].sum())

    def rows(self, start: int = 0, stop: int | None = None) -> list[Row]:
        """The compared tensors by step, then in execution order; from number `start` to before `stop`."""
        if self.measured is None or self.noise is None:
            return []
        noise = self.noise
        figures = (noise.added, noise.noise, noise.status)
        replayed = (self.added_a, self.added_b)
        total = noise.printed.total
        return rows_of(self.alignment.keys, self.measured, figures, replayed, total, start, stop)

    def to_json(self) -> dict[str, Any]:
        """The stable form; NaN and infinities are None."""
        return {
            "verdict": self.verdict,
            "sentence": self.sentence,
            "scenario": self.scenario.number,
            "scenario_sentence": self.scenario.sentence,
            "hypotheses": {
                name: {"answer": answer.yes, "figure": answer.figure}
                for name, answer in self.scenario.hypotheses.items()
            },
            "first_divergence": None if self.first is None else asdict(self.first),
            "evidence": self.evidence,
            "causes": [asdict(cause) for cause in self.causes],
            "coverage": self.coverage,
            "notes": self.notes,
            "replayed": self.added_a is not None,
            "tensors": [{k: finite(v) for k, v in row._asdict().items()} for row in self.rows()],
        }


def compare(a: Trace, b: Trace, *, workers: int | None = None) -> Comparison:
    """Compare our trace `a` with the reference `b`; memory stays bounded whatever their size."""
    found = align(a, b)
    if found.bos is not None:
        return _leading_token(found)
    if found.refusal is not None:
        return _refused(found, found.refusal)
    measured = measure(found.pieces(), len(found.keys), found.steps, workers)
    estimate_lengths(found, measured)
    if not measured.compared.any():
        return _refused(found, "every tensor that both hold is empty: nothing was compared")
    return _judged(found, measured)


def _refused(found: Alignment, why: str) -> Comparison:
    return Comparison("incomparable", why, found, found.coverage(None))


def _leading_token(found: Alignment) -> Comparison:
    """The prompts differ by a leading token only: no number need be compared to say what is wrong."""
    from .causes.tokens_bos import TokensBos

    evidence = found.bos or ""
    cause = Finding(TokensBos.id, 0, None, TOKENS, 1.0, evidence, TokensBos.fix)
    first = Place(0, None, TOKENS, "tokenizer")
    sentence = f"the two parted before the model ran: {evidence}"
    coverage = found.coverage(None)
    return Comparison("diverged", sentence, found, coverage, first=first, evidence=[evidence], causes=[cause])


def _judged(found: Alignment, measured: Measured) -> Comparison:
    noise = Noise(found, measured)
    scenario = decide(found, measured, noise)
    coverage, place = found.coverage(measured), noise.first()
    if place is None:
        verdict = "match" if (noise.status[measured.compared] == MATCH).all() else "rounding"
        sentence = _agreement(verdict, noise, measured)
        return Comparison(verdict, sentence, found, coverage, measured, noise, scenario=scenario)
    index, step = place
    key = found.keys[index]
    first = Place(step, key.layer, key.name, found.op(key))
    evidence = _evidence(found, measured, noise, index, step)
    cause = Finding(UNKNOWN, step, key.layer, key.name, 0.0, "; ".join(evidence))
    sentence = _divergence(found, noise, index, step)
    return Comparison(
        "diverged", sentence, found, coverage, measured, noise, first, evidence, scenario, [cause]
    )


def _agreement(verdict: str, noise: Noise, measured: Measured) -> str:
    count = int(measured.compared.sum())
    if verdict == "match":
        return f"all {count} tensors hold the same values"
    same = int((noise.status == MATCH).sum())
    worst = float(np.nanmax(np.where(measured.compared, measured.nrmse, np.nan)))
    printed = int((noise.printed.total > 0).sum())
    logged = f"; {printed} by the values that a log shows, within the printed precision" if printed else ""
    return (
        f"all {count} tensors agree as far as rounding explains ({same} to the bit{logged}; "
        f"the largest NRMSE is {worst:.1e})"
    )


def _divergence(found: Alignment, noise: Noise, index: int, step: int) -> str:
    key = found.keys[index]
    before = noise.status[:index, step]
    state = "to the bit" if (before[before > 0] == MATCH).all() else "as far as rounding explains"
    agreed = f"everything before it agrees {state}" if index or step else "it is the first tensor compared"
    more = int((noise.status == DIVERGED).sum()) - 1
    inherit = int((noise.status == INHERITED).sum())
    return (
        f"the first divergence is {visible(str(key))} in step {step} ({found.phase(step)}): {agreed}; "
        f"after it {more} more differ by themselves and {inherit} inherit a difference"
    )


def _evidence(found: Alignment, measured: Measured, noise: Noise, index: int, step: int) -> list[str]:
    """What the first difference looks like, in figures and in shape."""
    nrmse, threshold = float(measured.nrmse[index, step]), float(noise.noise[index, step])
    said = [f"NRMSE {nrmse:.2e} where rounding explains {threshold:.1e}"] if nrmse > threshold else []
    said += noise.printed.told(found, index, step, int(measured.values[index, step]), threshold)
    taken = sample(found, found.keys[index], step)
    said += [] if taken is None else describe(taken, threshold)
    sources, missing = noise.segment(found.keys[index])
    if missing:
        names = ", ".join(visible(str(key)) for key in missing[:SHOWN])
        after = ", ".join(visible(str(key)) for key in sources) or "the tokens"
        more = " and more" if len(missing) > SHOWN else ""
        said.append(f"{names}{more} were not recorded: the fault lies anywhere after {after}")
    return said
