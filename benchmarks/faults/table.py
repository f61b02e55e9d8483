"""The committed page of what was found."""

from collections.abc import Sequence
from typing import Any

from faults.judging import ROUNDING, Result
from tensortrace.analyze.cause import causes

PARTS = ("own", "foreign", "healthy")


def summary(results: Sequence[Result]) -> list[dict[str, Any]]:
    """One row for each group: shares are of the faults that show in the logits."""
    rows = []
    for group in dict.fromkeys(result.group for result in results):
        shown = [result for result in results if result.group == group and result.shows]
        rows.append(
            {
                "group": group,
                "faults": len(shown),
                "detected": sum(result.detected for result in shown),
                "first op": sum(result.first for result in shown),
                "top-1": sum(result.rank == 1 for result in shown),
                "top-1 or told together": sum(result.equal for result in shown),
                "top-3": sum(0 < result.rank <= 3 for result in shown),
                "hidden": sum(result.group == group and not result.shows for result in results),
            }
        )
    return rows


def markdown(report: dict[str, Any]) -> str:
    """The committed page."""
    results = [Result(**each) for part in PARTS[:2] if part in report for each in report[part]["found"]]
    lines = [
        "# The fault zoo",
        "",
        f"{len(causes())} causes; made by `python benchmarks/causes.py`. Shares are of the faults that "
        f"change the logits by more than {ROUNDING:g}, and than storing them does; *told together*: among "
        "causes that explain as much and cannot be told apart from what was recorded.  On an architecture "
        "each case of each cause is tried once, in one of four places (first, middle, last, all layers), of "
        "three phases (prefill, decode, both) and of two precisions in turn; what it has no operation for is "
        "left out.",
        "",
        "| faults | number | detected | first op right | cause first | or told together | in first three |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in summary(results):
        count = row["faults"]
        shares = (row[name] for name in ("detected", "first op", "top-1", "top-1 or told together", "top-3"))
        cells = (f"{100 * share / max(count, 1):.1f}%" for share in shares)
        lines.append(f"| {row['group']} | {count} | {' | '.join(cells)} |")
    hidden = sum(not result.shows for result in results)
    lines += ["", f"{hidden} faults more were tried that leave the logits as they are."]
    if healthy := report.get("healthy", {}).get("found"):
        lines += ["", f"Healthy pairs: {healthy['pairs']}, false alarms: {len(healthy['alarms'])}.", ""]
        lines += [f"- {name}: {count} pairs" for name, count in healthy["kinds"].items()]
        lines += [f"- **false alarm**: {alarm}" for alarm in healthy["alarms"]]
    shown = [result for result in results if result.shows]
    missed = [each for each in shown if not (each.detected and each.first and each.equal)]
    lines += ["", "## Not as it should be", ""]
    lines += [f"- {each.group}: `{each.fault}` → {each.found}" for each in missed] or ["Nothing."]
    for part in PARTS:
        if part in report:
            quick = ", quick" if report[part]["quick"] else ""
            lines += ["", f"{part}: {report[part]['date']}, {report[part]['seconds']} s{quick}."]
    return "\n".join(lines) + "\n"
