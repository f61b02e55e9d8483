"""`trace pull`: fetch a known model into the cache."""

from typing import Annotated

import typer


def command(
    name: Annotated[
        str | None, typer.Argument(help="A name that `trace models` lists (default smollm2-135m).")
    ] = None,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print nothing but the path.")] = False,
) -> None:
    """Fetch a known model, check its SHA-256, keep it in the cache folder, and print its path.

    [bold]Example:[/bold]  trace pull smollm2-135m
    """
    from ..hub import DEFAULT, pull
    from .console import stderr

    notes = stderr()
    path = pull(
        name or DEFAULT, (lambda line: None) if quiet else lambda line: notes.print(line, soft_wrap=True)
    )
    print(path)
