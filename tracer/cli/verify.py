"""`trace verify`: which operations of one recording are wrong by themselves, and why."""

from pathlib import Path
from typing import Annotated

import typer

MEMORY = 1 << 26  # bytes of dequantised weights that are kept: each is needed once or twice


def command(
    a: Annotated[Path, typer.Argument(metavar="A.h5", help="The trace to verify.")],
    model: Annotated[
        str | None, typer.Option(help="The GGUF that was run, or its known name (default smollm2-135m).")
    ] = None,
    json: Annotated[str | None, typer.Option(metavar="PATH|-", help="Write the findings as JSON.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the findings as Markdown.")] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Show every tensor, not only those around the first fault.")
    ] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print nothing; the exit code tells.")] = False,
) -> None:
    """Replay every recorded operation in float64 from its recorded inputs and the model's weights.

    Needs no reference, and works with however little was recorded: where an operation's inputs are missing,
    it is replayed together with those before it.

    Exit code 0: nothing wrong; 1: an operation is wrong; 2: nothing could be verified.

    [bold]Example:[/bold]  trace verify mine.h5 --model model.gguf
    """
    from ...analyze.find import verify_and_explain
    from ..gguf import Model
    from ..hub import resolve
    from ..trace import Trace
    from .console import stdout, write_json, write_text

    with Trace(a) as trace:
        found = verify_and_explain(trace, Model(resolve(model), memory=MEMORY))
        if json is not None:
            write_json(found.to_json(), json)
        if markdown is not None:
            from ...analyze.verify_report import sheet

            write_text(sheet(found), str(markdown))
        if not quiet and json != "-":
            from ...analyze.verify_report import render

            stdout().print(render(found, everything=everything))
    raise typer.Exit(found.exit_code)
