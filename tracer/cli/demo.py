"""`trace demo`: the whole story on a real model: a healthy run, a broken one, and the fault's name."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

PROMPT = "Once upon a time"
FAULT = "norm_plus_one@0-1,attn_norm"
NEW_TOKENS = 15


def command(
    model: Annotated[
        str | None, typer.Argument(help="GGUF file or known name (default smollm2-135m).")
    ] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the two traces.")] = Path("demo"),
) -> None:
    """Record a healthy run and one with a fault put in, look for anomalies, compare, name the fault.

    [bold]Example:[/bold]  trace demo
    """
    from ...analyze.cause import Injection
    from ..hub import resolve
    from . import anomalies, compare, record
    from .console import stdout

    start, path = time.monotonic(), str(resolve(model))
    output.mkdir(parents=True, exist_ok=True)
    healthy, broken = output / "healthy.h5", output / "broken.h5"
    ask = {"prompt": PROMPT, "n_new": NEW_TOKENS}
    shown = f'-p "{PROMPT}" -n {NEW_TOKENS}'

    _title("1. A healthy run", f"trace record {shown} -o {healthy}")
    _run(record.command, path, output=healthy, **ask)
    _title(
        "2. The same engine with a classic fault: the gain of the first two attention norms taken as 1 + w",
        f"trace record {shown} -o {broken} --inject {FAULT}",
    )
    _run(record.command, path, output=broken, inject=FAULT, **ask)
    _title("3. What is wrong in the broken trace alone?", f"trace anomalies {broken} --baseline {healthy}")
    findings = _run(anomalies.command, broken, baseline=healthy, model=path)
    _title("4. Where do the two part, and why?", f"trace compare {broken} {healthy} --model {path}")
    difference = _run(compare.command, broken, healthy, model=path)

    fault = Injection.parse(FAULT).cause
    stdout().print(f"\nThe fault put in was {fault.id}; the fix: {fault.fix}.")
    stdout().print(f"Done in {time.monotonic() - start:.0f} s; the traces are in {output}/.")
    if not (findings == difference == 1):
        raise typer.Exit(1)


def _title(title: str, shell: str) -> None:
    from rich.text import Text

    from .console import stdout

    stdout().print(Text(f"\n{title}", style="bold"))
    stdout().print(Text(f"$ {shell}\n", style="dim"), soft_wrap=True)


def _run(command: Callable[..., None], *arguments, **options) -> int:
    """The exit code of a command called in this process."""
    try:
        command(*arguments, **options)
    except typer.Exit as exit:
        return exit.exit_code
    return 0
