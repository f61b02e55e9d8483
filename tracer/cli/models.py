"""`trace models`: the known small models."""

from typing import Annotated

import typer


def command(
    json: Annotated[
        str | None, typer.Option("--json", metavar="PATH|-", help="Write the list as JSON.")
    ] = None,
) -> None:
    """List the models that can be used by name, and whether they are here already.

    [bold]Example:[/bold]  trace models
    """
    from dataclasses import asdict

    from ..hub import DEFAULT, KNOWN, cached
    from ..text import human_bytes
    from .console import stdout, table, write_json

    found = [(model, cached(model.name)) for model in KNOWN.values()]
    if json:
        write_json([{**asdict(model), "path": path and str(path)} for model, path in found], json)
        if json == "-":
            return
    rows = table("name", "here", ">size", "licence", "note")
    for model, path in found:
        name = f"{model.name} (default)" if model.name == DEFAULT else model.name
        rows.add_row(name, "yes" if path else "no", human_bytes(model.size), model.licence, model.note)
    stdout().print(rows)
    if not all(path for _, path in found):
        stdout().print("\nFetch one with `trace pull NAME`.")
