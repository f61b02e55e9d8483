"""`trace anomalies`: what is wrong in one trace."""

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer


def command(
    a: Annotated[Path, typer.Argument(help="The trace to look at.", metavar="A.h5")],
    baseline: Annotated[
        Path | None, typer.Option(help="A healthy trace, to compare magnitudes and texts with.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="The GGUF that was run, or its known name: says how large Q, K and V are."),
    ] = None,
    json: Annotated[
        str | None, typer.Option("--json", metavar="PATH|-", help="Write the findings as JSON.")
    ] = None,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print nothing: the exit code tells.")] = False,
) -> None:
    """Look for what cannot be right in a trace: magnitudes, softmax, masks, NaN, dead heads, repetition.

    Exits with 0 where nothing is wrong, 1 on a warning or an error, 2 where nothing could be judged.

    [bold]Example:[/bold]  trace anomalies broken.h5 --baseline healthy.h5 --model smollm2-135m
    """
    from ...analyze.anomaly import find_anomalies
    from ...analyze.anomaly_report import print_report
    from ..gguf import Model
    from ..hub import resolve
    from ..trace import Trace
    from .console import stderr, stdout, write_json

    with ExitStack() as stack:
        trace = stack.enter_context(Trace(a))
        healthy = stack.enter_context(Trace(baseline)) if baseline else None
        weights = Model(resolve(model)) if model else None
        with stderr().status("looking for anomalies") as status:
            report = find_anomalies(
                trace,
                healthy,
                weights,
                progress=lambda block: status.update(f"looking for anomalies in step {block.steps[0].index}"),
            )
        if json:
            write_json(report.to_json(), json)
        if not quiet and json != "-":
            print_report(report, stdout())
    if report.exit_code:
        raise typer.Exit(report.exit_code)
