"""Running one subcommand of `trace` in this process, as the command line would."""

import contextlib
import io
from importlib import import_module
from typing import NamedTuple

import typer
from tensortrace.tracer.errors import UserError


class Outcome(NamedTuple):
    """What a command came to."""

    code: int
    out: str
    err: str


def run(name: str, *arguments: object) -> Outcome:
    """`trace NAME ARGUMENTS`, with UserError as one line and exit code 2."""
    app = typer.Typer(rich_markup_mode="rich", pretty_exceptions_enable=False)
    app.command(name)(import_module(f"tensortrace.tracer.cli.{name}").command)
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = app([str(argument) for argument in arguments], standalone_mode=False) or 0
        except UserError as error:
            code = 2
            err.write(f"trace: {error}\n")
    return Outcome(code, out.getvalue(), err.getvalue())
