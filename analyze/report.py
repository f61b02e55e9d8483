"""The comparison as people read it: what was compared, the verdict, the tensors around the divergence."""

import math
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ..tracer.text import visible
from ..tracer.trace import Trace
from .compare import Comparison
from .findings import UNKNOWN, Finding, Row

BEFORE, AFTER = 4, 12  # rows shown around the first divergence
FEW = 14  # rows shown where nothing diverged

VERDICTS = {
    "match": ("MATCH", "bold green"),
    "rounding": ("ROUNDING ONLY", "bold green"),
    "diverged": ("DIVERGED", "bold red"),
    "incomparable": ("INCOMPARABLE", "bold yellow"),
}
STYLES = {"match": "dim", "rounding": "", "inherited": "yellow", "diverged": "bold red"}
COLUMNS = ("step", "tensor", "status", ">nrmse", ">max abs", ">cosine", ">scale", ">|a|", ">|b|", ">noise")
PRINTED = ">values"  # a column for logs, which leave some out
REPLAYED = (">added a", ">added b")  # columns where both sides were replayed with the model
WIDE = 96  # terminal columns that all of them need
DISPENSABLE = ("max abs", "cosine")
HYPOTHESES = {"A": "normalisation or bias missing", "B": "Q·K computed wrongly", "C": "wrong scale factor"}
ANSWERS = {True: ("yes", "bold red"), False: ("no", "green"), None: ("?", "dim")}
WEAKER = "judged without the model file, by declared precision and inherited error; --model replays the op"
LEGEND = (
    "nrmse = |a-b| / |b|; |a|, |b| = mean norm of a head's vector, largest score, or RMS; "
    "noise = the nrmse that rounding explains; added = the error of each side's own operation, by replay"
)


def render(comparison: Comparison, *, everything: bool = False) -> RenderableType:
    """The whole report; `everything` shows all rows in place of those around the divergence."""
    parts: list[RenderableType] = [_sides(comparison), Text(), *_verdict(comparison)]
    if comparison.scenario.hypotheses:
        parts += [Text(), _scenario(comparison)]
    if comparison.measured is not None:
        parts += [Text(), _Tensors(comparison, everything), Text(LEGEND, "dim")]
    return Group(*parts)


def describe_side(trace: Trace) -> str:
    """One line on what a trace is a recording of."""
    header = trace.header
    decodes = sum(step.phase == "decode" for step in trace.flushed)
    parts = [header.engine or "unknown engine", header.compute_dtype]
    parts.append(f"{len(trace.prompt_ids)} prompt tokens" + (f" + {decodes} decoded" if decodes else ""))
    if header.injected:
        parts.append(f"fault put in: {header.injected}")
    return visible(", ".join(part for part in parts if part))


def coverage_text(comparison: Comparison) -> str:
    """How much was compared, and what was not."""
    coverage = comparison.coverage
    compared = coverage["compared"]
    text = f"{compared} tensors compared, counted for each step" if compared else "nothing was compared"
    for name, where in (("only_a", "only in a"), ("only_b", "only in b"), ("incomparable", "do not fit")):
        if coverage[name]:
            text += f"; {coverage[name]} {where}"
    return text


def _sides(comparison: Comparison) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    a, b = comparison.alignment.a.trace, comparison.alignment.b.trace
    for name, trace in (("a", a), ("b", b)):
        title = f"{visible(trace.path.name, 40)}{' (the reference)' if trace is b else ''}"
        grid.add_row(Text(name, "bold"), Text.assemble((title, "bold"), f"  {describe_side(trace)}"))
    grid.add_row("", Text(coverage_text(comparison), "dim"))
    models = dict.fromkeys(t.header.model_name for t in (a, b) if t.header.model_name)
    if models:
        grid.add_row("", Text(f"model: {visible(' and '.join(models))}", "dim"))
    for note in comparison.notes:
        grid.add_row("", Text(f"note: {note}", "dim"))
    return grid


def _verdict(comparison: Comparison) -> list[RenderableType]:
    name, style = VERDICTS[comparison.verdict]
    details = Table.grid(padding=(0, 1))
    for text in comparison.evidence:
        details.add_row("·", Text(visible(text)))
    for cause in comparison.causes:
        details.add_row("·", cause_text(comparison, cause))
    return [Text.assemble((name, style), "  ", sentence(comparison.sentence)), Padding(details, (0, 0, 0, 2))]


def cause_text(comparison: Comparison, cause: Finding) -> Text:
    """A cause with its evidence; where none was looked for, that the verdict is weaker for it."""
    if cause.id != UNKNOWN:
        return Text.assemble(
            "cause: ", (visible(cause.id), "bold"), f"; {visible(cause.evidence)}; fix: {visible(cause.fix)}"
        )
    return Text(WEAKER, "dim") if comparison.added_a is None else Text(visible(cause.evidence))


def sentence(text: str) -> str:
    """`text` with a capital and a full stop."""
    return f"{text[:1].upper()}{text[1:]}."


def _scenario(comparison: Comparison) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    scenario = comparison.scenario
    said = sentence(visible(scenario.sentence)) if scenario.sentence else ""
    title = Text.assemble((f"scenario {scenario.number}", "bold"), f"  {said}") if scenario.number else None
    for name, answer in scenario.hypotheses.items():
        word, style = ANSWERS[answer.yes]
        question = Text.assemble((name, "bold"), f"  {HYPOTHESES[name]}?")
        grid.add_row(question, Text(word, style), Text(visible(answer.figure)))
    return grid if title is None else Group(title, grid)


@dataclass
class _Tensors:
    """The table of tensors; a terminal too narrow for all columns gets those that tell most."""

    comparison: Comparison
    everything: bool

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        total, at = self.comparison.coverage["compared"], self.comparison.position
        start, stop = (0, FEW) if at is None else (max(at - BEFORE, 0), min(at + AFTER, total))
        if self.everything:
            start, stop = 0, total
        replayed = self.comparison.added_a is not None
        all_fit = options.max_width >= WIDE and not replayed
        shown = [name for name in COLUMNS if all_fit or name.strip(">") not in DISPENSABLE]
        shown += REPLAYED if replayed else ()
        if self.comparison.noise is not None and self.comparison.noise.printed.keys:
            shown.append(PRINTED)
        table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1))
        for name in shown:
            table.add_column(name.strip(">"), justify="right" if name[0] == ">" else "left", no_wrap=True)
        for row in self.comparison.rows(start, stop):
            cells = dict(zip((*COLUMNS, *REPLAYED, PRINTED), _cells(row)))
            table.add_row(*(Text(cells[name]) for name in shown), style=STYLES[row.status])
        yield table
        if hidden := total - (min(stop, total) - start):
            yield Text(f"{hidden} of {total} rows are not shown (--all)", "dim")


def _cells(row: Row) -> tuple[str, ...]:
    return (
        str(row.step),
        visible(str(row.key), 20),
        row.status,
        error_text(row.nrmse),
        error_text(row.max_abs),
        f"{row.cosine:.6f}" if math.isfinite(row.cosine) else "-",
        *map(number_text, (row.scale, row.mag_a, row.mag_b)),
        *map(error_text, (row.noise, row.added_a, row.added_b)),
        values_text(row),
    )


def values_text(row: Row) -> str:
    """How many values were compared of how many, where a log does not show all."""
    return f"{row.values} of {row.of}" if row.values < row.of else "all"


def error_text(value: float | None) -> str:
    """An error in two digits; `-` where there is none to tell."""
    if value is None or not math.isfinite(value):
        return "-"
    return "0" if value == 0 else f"{value:.1e}"


def number_text(value: float) -> str:
    """A magnitude in four digits."""
    return f"{value:.4g}" if math.isfinite(value) else "-"
