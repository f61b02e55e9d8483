"""The `trace` command: each subcommand is one file beside this one; heavy imports happen inside them."""

import os
import sys
from importlib import import_module
from keyword import iskeyword
from typing import Annotated

import typer

from ..errors import UserError

COMMANDS = (
    "record",
    "compare",
    "verify",
    "anomalies",
    "import",
    "info",
    "ls",
    "show",
    "weights",
    "pull",
    "models",
    "demo",
    "doctor",
)

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(show: bool) -> None:
    if show:
        from importlib.metadata import version

        print(f"tensortrace {version('tensortrace')}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Record every intermediate of an LLM inference run, and find the first operation that is wrong."""


for _name in COMMANDS:
    _module = f".{_name}_" if iskeyword(_name) else f".{_name}"
    app.command(_name)(import_module(_module, __package__).command)


def main() -> None:
    """Run the command line: 0 nothing wrong, 1 a finding, 2 trouble."""
    try:
        app()
    except UserError as error:
        print(f"trace: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("trace: interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output went away: not our trouble
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
