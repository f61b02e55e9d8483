"""What is wrong in one trace: all rules run over it, and the report of what they found."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from ..tracer.gguf import Model
from ..tracer.names import Key, execution_order
from ..tracer.trace import Trace
from .rule import Context, Hit, Rule, rules
from .walk import Block, blocks

SEVERITIES = ("error", "warning", "info")  # worst first
DETAILS = 8  # places of a finding that its evidence lists one by one


@dataclass(frozen=True)
class Finding:
    """What a rule found in one tensor.

    Step, layer, message and value are of the first place in execution order, as later ones inherit from it;
    `evidence` has all layers and steps, and details of the worst places.
    """

    rule: str
    severity: str
    step: int | None
    layer: int | None
    tensor: str
    message: str
    value: float
    expected: str
    evidence: dict[str, Any]

    @property
    def order(self) -> tuple:
        """Sort key: execution order."""
        return (-1 if self.step is None else self.step, execution_order(Key(self.layer, self.tensor)))


@dataclass(frozen=True)
class Report:
    """What was found, worst first, then in execution order; which rules ran and why others did not."""

    trace: Trace
    findings: list[Finding]
    run: list[str]
    skipped: dict[str, str]
    baseline: Trace | None = None
    model: Model | None = None

    @property
    def exit_code(self) -> int:
        """0 nothing wrong, 1 a warning or an error, 2 no rule could judge anything."""
        if not self.run:
            return 2
        return int(any(finding.severity != "info" for finding in self.findings))

    @property
    def first(self) -> Finding | None:
        """The warning or error that comes first in execution order."""
        serious = (finding for finding in self.findings if finding.severity != "info")
        return min(serious, key=lambda finding: finding.order, default=None)

    def to_json(self) -> dict[str, Any]:
        trace, header = self.trace, self.trace.header
        return {
            "trace": str(trace.path),
            "baseline": str(self.baseline.path) if self.baseline else None,
            "model": str(self.model.path) if self.model else None,
            "engine": header.engine,
            "model_name": header.model_name,
            "model_sha256": header.model_sha256,
            "architecture": header.architecture,
            "injected": header.injected,
            "tokens": trace.n_tokens,
            "steps": len(trace.flushed),
            "complete": trace.complete,
            "findings": [asdict(finding) for finding in self.findings],
            "rules": {"run": self.run, "skipped": self.skipped},
        }


def find_anomalies(
    trace: Trace,
    baseline: Trace | None = None,
    model: Model | None = None,
    *,
    progress: Callable[[Block], None] = lambda block: None,
) -> Report:
    """Everything that the rules find in `trace`, from one tensor of one layer at a time.

    `baseline` is a healthy trace to compare magnitudes and texts with, `model` the GGUF that was run.
    """
    context, active, skipped = Context(trace, baseline, model), [], {}
    for rule in (kind(context) for kind in rules().values()):
        why = rule.unable()
        if why is None:
            active.append(rule)
        else:
            skipped[rule.id] = why
    hits: dict[str, list[Hit]] = {rule.id: [] for rule in active}
    with np.errstate(all="ignore"):  # what is no number is a rule's to tell
        for block in blocks(trace):
            progress(block)
            for rule in active:
                hits[rule.id] += rule.see(block)
        for rule in active:
            hits[rule.id] += rule.conclude()
    findings = [finding for rule in active for finding in _findings(rule, hits[rule.id])]
    findings.sort(key=lambda finding: (SEVERITIES.index(finding.severity), finding.order))
    skipped |= {rule.id: rule.idle for rule in active if not rule.judged}
    return Report(trace, findings, [rule.id for rule in active if rule.judged], skipped, baseline, model)


def _findings(rule: Rule, hits: list[Hit]) -> Iterator[Finding]:
    """One finding for each tensor, with the first of its gravest places."""
    grouped: dict[str, list[Hit]] = {}
    for hit in hits:
        grouped.setdefault(hit.tensor, []).append(replace(hit, severity=hit.severity or rule.severity))
    for tensor, group in grouped.items():
        severity = min((hit.severity for hit in group), key=SEVERITIES.index)
        gravest = (hit for hit in group if hit.severity == severity)
        first = min(gravest, key=lambda hit: min(hit.steps, default=-1))  # hits come in execution order
        yield Finding(
            rule=rule.id,
            severity=severity,
            step=min(first.steps, default=None),
            layer=first.layer,
            tensor=tensor,
            message=first.message,
            value=first.value,
            expected=first.expected,
            evidence=_evidence(group),
        )


def _evidence(group: list[Hit]) -> dict[str, Any]:
    worst = sorted(group, key=lambda hit: -hit.weight)[:DETAILS]
    return {
        "layers": ranges(hit.layer for hit in group if hit.layer is not None),
        "steps": ranges(step for hit in group for step in hit.steps),
        "places": len(group),
        "details": [
            {"step": min(hit.steps, default=None), "layer": hit.layer, "value": hit.value, **hit.detail}
            for hit in worst
        ],
    }


def ranges(numbers: Iterable[int]) -> str:
    """3,4,5,9 -> "3-5,9"."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
