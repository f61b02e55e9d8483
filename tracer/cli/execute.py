"""`trace record --exec`: a trace of what somebody's own program records through `tensortrace.h`."""

from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import typer

from ..errors import UserError
from ..text import visible

TAKES = {"execute", "model", "program", "output", "quiet"}  # of `record`; the program decides all else itself


def refuse_options(context: typer.Context) -> None:
    """UserError where options were given that mean nothing here."""
    given = [
        parameter.opts[-1]
        for parameter in context.command.params
        if parameter.name not in TAKES and _is_given(context, str(parameter.name))
    ]
    if given:
        raise UserError(f"{', '.join(given)}: with --exec the program alone decides what it runs and records")


def _is_given(context: typer.Context, parameter: str) -> bool:
    source = context.get_parameter_source(parameter)
    return source is not None and source.name == "COMMANDLINE"


def run_program(arguments: Sequence[str], output: Path, *, quiet: bool) -> NoReturn:
    """Run it, write the trace, and exit with what it exited with."""
    from ..execute import execute
    from .console import stderr
    from .import_ import print_result

    done = execute(arguments, output)
    if not quiet:
        print_result(done.trace)
    if done.exit_code:
        stderr().print(visible(done.status))
    raise typer.Exit(done.exit_code)
