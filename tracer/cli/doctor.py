"""`trace doctor`: what is usable here, and how to get what is missing."""

from typing import Annotated

import typer


def command(
    json: Annotated[
        str | None, typer.Option("--json", metavar="PATH|-", help="Write what was found as JSON.")
    ] = None,
) -> None:
    """Check Python, libraries, memory, GPU driver and engines, and say how to get the missing ones.

    Exits with 0 where at least the CPU engine works, else with 2.

    [bold]Example:[/bold]  trace doctor
    """
    from .checkup import checkup
    from .console import stdout, table, write_json

    found = checkup()
    if json:
        write_json([entry._asdict() for entry in found], json)
    if json != "-":
        from rich.text import Text

        from ..text import visible

        marks = {True: Text("✓", style="green"), False: Text("✗", style="red"), None: Text("·", style="dim")}
        rows = table("", "what", "found", "how to get it")
        for entry in found:
            rows.add_row(marks[entry.ok], entry.what, visible(entry.found), visible(entry.advice))
        stdout().print(rows)
    if not all(entry.ok for entry in found if entry.needed):
        raise typer.Exit(2)
