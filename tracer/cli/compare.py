"""`trace compare`: where two recordings part, and what that says."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UserError

if TYPE_CHECKING:
    from ...analyze.compare import Comparison


def command(
    a: Annotated[Path, typer.Argument(metavar="A", help="Our trace.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="The reference's trace.")],
    model: Annotated[
        str | None, typer.Option(help="GGUF file or known name: replay the diverging op to name its cause.")
    ] = None,
    json: Annotated[str | None, typer.Option(metavar="PATH|-", help="Write the findings as JSON.")] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="Write the sheet of our and the reference's values.")
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Show every tensor, not only those around the divergence.")
    ] = False,
    explain: Annotated[
        str | None,
        typer.Option(metavar="TENSOR", help="How its threshold came about: q@3, logits, scores@0:5."),
    ] = None,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print nothing; the exit code tells.")] = False,
) -> None:
    """Find the first operation at which two traces part by more than rounding.

    Exit code 0: nothing wrong; 1: they differ; 2: they could not be compared.

    [bold]Example:[/bold]  trace compare ours.h5 reference.h5 --model model.gguf
    """
    from ...analyze.compare import compare
    from ..trace import Trace
    from .console import stdout, write_json, write_text

    with Trace(a) as ours, Trace(b) as reference:
        comparison = compare(ours, reference)
        if model is not None and comparison.exit_code == 1:
            from ...analyze.find import name_causes
            from ..gguf import Model
            from ..hub import resolve

            comparison = name_causes(comparison, ours, reference, Model(resolve(model)))
        if json is not None:
            write_json(comparison.to_json(), json)
        if markdown is not None:
            from ...analyze.markdown import sheet

            write_text(sheet(comparison), str(markdown))
        if explain is not None:
            stdout().print(_explanation(comparison, explain))
        elif not quiet and json != "-":
            from ...analyze.report import render

            stdout().print(render(comparison, everything=everything))
    raise typer.Exit(comparison.exit_code)


def _explanation(comparison: "Comparison", tensor: str) -> str:
    """`NAME[@LAYER][:STEP]`; the step is that of the first divergence unless it is given."""
    from ..names import Key

    place, _, step = tensor.partition(":")
    name, _, layer = place.partition("@")
    if not all(part.isdecimal() for part in (layer, step) if part):
        raise UserError(f"--explain {tensor!r}: give NAME[@LAYER][:STEP], as in q@3 or scores@0:5")
    if comparison.noise is None:
        raise UserError(f"--explain {tensor}: {comparison.sentence}")
    first = 0 if comparison.first is None else comparison.first.step
    key = Key(int(layer) if layer else None, name)
    return comparison.noise.explain(key, int(step) if step else first)
