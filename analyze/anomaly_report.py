"""The report of `trace anomalies` for a person: a table, and the sentence that it comes to."""

from collections import Counter

from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ..tracer.names import Key
from ..tracer.text import visible
from .anomaly import Finding, Report

WIDTH = 100  # columns that the report needs at most

_STYLES = {"error": "bold red", "warning": "bold yellow", "info": "cyan"}


def print_report(report: Report, console: Console) -> None:
    """Print what was found, where, and what was expected; then the verdict and what was not judged."""
    parts: list = [_headline(report), ""]
    if report.findings:
        parts.append(_table(report.findings))
    parts.append(_verdict(report))
    if report.skipped:
        parts += ["", _skipped(report)]
    console.print(Group(*parts), width=min(console.width, WIDTH))


def _headline(report: Report) -> Text:
    trace, header = report.trace, report.trace.header
    steps = f"{trace.n_tokens} tokens in {_count(len(trace.flushed), 'step')}"
    state = "" if trace.complete else " (incomplete: the recording was cut short)"
    text = Text(visible(str(trace.path)), style="bold")
    engine = header.engine and f"{header.engine} engine"
    about = ", ".join(part for part in (header.model_name, engine, steps) if part)
    text.append(f"  {visible(about)}{state}", style="not bold")
    for name, other in (("baseline", report.baseline), ("model", report.model)):
        if other is not None:
            text.append(f"\n{name} {visible(str(other.path))}", style="not bold dim")
    return text


def _table(findings: list[Finding]) -> Table:
    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    made.add_column("severity", no_wrap=True)
    made.add_column("where", no_wrap=True, max_width=24, overflow="ellipsis")
    made.add_column("what", ratio=1)
    for finding in findings:
        made.add_row(_severity(finding), _where(finding), _what(finding))
        made.add_row()  # air between findings of several lines
    return made


def _severity(finding: Finding) -> Text:
    text = Text(finding.severity, style=_STYLES[finding.severity])
    return text.append(f"\n{finding.rule}", style="not bold dim default")


def _where(finding: Finding) -> Text:
    """The first place, and below it all layers and steps where they are more than one."""
    text = Text(visible(str(Key(finding.layer, finding.tensor))), style="bold")
    for name in ("layers", "steps"):
        numbers = finding.evidence[name]
        several = "-" in numbers or "," in numbers
        if several or (name == "steps" and numbers):
            label = name if several else name.removesuffix("s")
            text.append(f"\n{label} {_shorter(numbers)}", style="not bold dim")
    return text


def _shorter(numbers: str, limit: int = 16) -> str:
    """A long list of ranges as its ends: 0-3,5,9-29 -> 0…29."""
    if len(numbers) <= limit:
        return numbers
    first, last = numbers.replace("-", ",").split(",")[0], numbers.replace("-", ",").split(",")[-1]
    return f"{first}…{last}, not all"


def _what(finding: Finding) -> Text:
    text = Text(visible(finding.message))
    return text.append(f"\nexpected: {visible(finding.expected)}", style="dim")


def _verdict(report: Report) -> Text:
    counts, first = Counter(finding.severity for finding in report.findings), report.first
    if not report.run:
        return Text(
            "Nothing could be judged: this trace holds nothing that a rule can look at.", style="bold"
        )
    if first is None:
        told = f", {_count(counts['info'], 'remark')}" if counts["info"] else ""
        rules = _count(len(report.run), "rule")
        return Text(f"Nothing wrong: {rules} found no error and no warning{told}.", style="bold green")
    found = " and ".join(_count(counts[s], s) for s in ("error", "warning") if counts[s])
    place = visible(str(Key(first.layer, first.tensor)))
    step = "" if first.step is None else f" of step {first.step}"
    return Text(
        f"{found[0].upper()}{found[1:]}. The first in execution order is at {place}{step} "
        f"({first.rule}): start there, as what follows inherits from it.",
        style="bold",
    )


def _skipped(report: Report) -> Group:
    """Why rules did not judge, one line for each reason."""
    reasons: dict[str, list[str]] = {}
    for rule, why in report.skipped.items():
        reasons.setdefault(why, []).append(rule)
    lines = [Text(f"{', '.join(names)}: {visible(why)}", style="dim") for why, names in reasons.items()]
    head = Text(f"Judged by {_count(len(report.run), 'rule')}; not judged:", style="dim")
    return Group(head, *(Padding(line, (0, 0, 0, 2), expand=False) for line in lines))


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"
