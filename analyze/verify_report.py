"""A verification as people read it: a table for the terminal, and Markdown."""

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ..tracer.text import visible
from .findings import UNKNOWN, Finding
from .markdown import escape, table
from .report import AFTER, BEFORE, FEW, STYLES, describe_side, error_text, number_text, sentence
from .verify import Verification

VERDICTS = {
    "match": ("VERIFIED", "bold green"),
    "rounding": ("VERIFIED", "bold green"),
    "diverged": ("FAULTY", "bold red"),
    "incomparable": ("NOT VERIFIED", "bold yellow"),
}
COLUMNS = ("step", "tensor", "status", "replayed", "added", "noise", "scale", "recorded", "right")
LEGEND = (
    "added = |recorded - right| / |right|, the error of the replayed operations alone; noise = what rounding "
    "explains of it; replayed = how many operations were replayed as one; recorded, right = magnitudes"
)


def render(found: Verification, *, everything: bool = False) -> RenderableType:
    """The whole report; `everything` shows all rows in place of those around the first fault."""
    name, style = VERDICTS[found.verdict]
    details = Table.grid(padding=(0, 1))
    for text in (*found.evidence, *map(_cause, found.causes)):
        details.add_row("·", Text(visible(text)))
    parts: list[RenderableType] = [
        *_side(found),
        Text(),
        Text.assemble((name, style), "  ", sentence(found.sentence)),
        Padding(details, (0, 0, 0, 2)),
    ]
    if found.coverage["compared"]:
        parts += [Text(), *_tensors(found, everything), Text(LEGEND, "dim")]
    return Group(*parts)


def resolution_text(found: Verification) -> str:
    """How much was verified, and how finely."""
    coverage, resolution = found.coverage, found.resolution
    if not coverage["compared"]:
        return "nothing was verified"
    text = (
        f"{coverage['compared']} tensors verified, counted for each step; {resolution['covered']} of "
        f"{resolution['ops']} operations covered, {resolution['alone']} one by one"
    )
    if resolution["longest"] > 1:
        text += f", the others in segments of up to {resolution['longest']}: record more to see finer"
    for name, where in (("only_a", "could not be replayed"), ("incomparable", "do not fit the model")):
        if coverage[name]:
            text += f"; {coverage[name]} {where}"
    return text


def _side(found: Verification) -> Iterator[RenderableType]:
    trace = found.trace
    yield Text.assemble((visible(trace.path.name, 40), "bold"), f"  {describe_side(trace)}")
    yield Text(f"model: {visible(found.model.name)}", "dim")
    yield Text(resolution_text(found), "dim")
    yield Text(f"rounding expected: {found.recompute.allowance.precision.says}", "dim")
    for note in found.notes:
        yield Text(f"note: {note}", "dim")


def _cause(cause: Finding) -> str:
    if cause.id == UNKNOWN:
        return cause.evidence
    return f"cause: {cause.evidence}; fix: {cause.fix}"


def _shown(found: Verification, everything: bool) -> slice:
    at, total = found.position, found.coverage["compared"]
    if everything:
        return slice(0, total)
    return slice(0, min(FEW, total)) if at is None else slice(max(at - BEFORE, 0), min(at + AFTER, total))


def _tensors(found: Verification, everything: bool) -> Iterator[RenderableType]:
    shown = _shown(found, everything)
    grid = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1))
    for name in COLUMNS:
        grid.add_column(name, justify="left" if name in ("tensor", "status") else "right", no_wrap=True)
    for cells in _cells(found, shown):
        grid.add_row(*map(Text, cells), style=STYLES[cells[2]])
    yield grid
    total = found.coverage["compared"]
    if hidden := total - (shown.stop - shown.start):
        yield Text(f"{hidden} of {total} rows are not shown (--all)", "dim")


def _cells(found: Verification, shown: slice) -> Iterator[tuple[str, ...]]:
    for row in found.rows(shown.start, shown.stop):
        yield (
            str(row.step),
            visible(str(row.key), 20),
            row.status,
            str(len(found.segments[row.key])),
            error_text(row.nrmse),
            error_text(row.noise),
            *map(number_text, (row.scale, row.mag_a, row.mag_b)),
        )


def sheet(found: Verification) -> str:
    """The same in Markdown."""
    lines = [
        "# Trace verification",
        "",
        f"{escape(found.trace.path.name)}: {escape(describe_side(found.trace))}, "
        f"verified with {escape(found.model.name)}.",
        "",
        f"{escape(sentence(resolution_text(found)))}",
        *(f"\n> {escape(sentence(note))}" for note in found.notes),
        "",
        f"## Verdict: {VERDICTS[found.verdict][0].lower()}",
        "",
        escape(sentence(found.sentence)),
        "",
        *(f"- {escape(text)}" for text in found.evidence),
        *_causes(found),
    ]
    if found.coverage["compared"]:
        cells = (map(escape, row) for row in _cells(found, _shown(found, False)))
        lines += ["", "## Tensors in execution order", "", *table(COLUMNS, cells), "", f"{LEGEND}."]
    return "\n".join(lines) + "\n"


def _causes(found: Verification) -> Iterator[str]:
    if not found.causes:
        return
    yield from ("", "## Causes", "")
    rows = ((f"`{c.id}`", f"{c.confidence:.2%}", escape(c.evidence), escape(c.fix)) for c in found.causes)
    yield from table(("cause", "explains", "evidence", "what to do"), rows)
