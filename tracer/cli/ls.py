"""`trace ls`: one line for each tensor of a trace."""

from pathlib import Path
from typing import Annotated

import typer

GROWING = ("token", "query", "key", "tile")  # axes whose size is the step's


def command(
    a: Annotated[Path, typer.Argument(help="The trace.", metavar="A.h5")],
    pattern: Annotated[
        str, typer.Argument(help="Which ones: a name or glob such as q, 'L03*', '*rope', 'layers/03/*'.")
    ] = "*",
) -> None:
    """List the tensors of a trace in execution order.

    [bold]Example:[/bold]  trace ls healthy.h5 'L03 *'
    """
    from fnmatch import fnmatchcase

    from ..errors import UserError
    from ..text import human_bytes, visible
    from ..trace import Trace
    from .console import stdout, table
    from .info import stored_bytes

    with Trace(a) as trace:
        rows = table("tensor", "axes", "dtype", ">steps", ">bytes", "op", "engine's name")
        for key, spec in trace.tensors.items():
            if not any(fnmatchcase(name, pattern) for name in (key.name, str(key), key.path, key.path[1:])):
                continue
            steps = sum(trace.has(key, step.index) for step in trace.steps)
            axes = ", ".join(axis if axis in GROWING else f"{axis} {spec.sizes[axis]}" for axis in spec.axes)
            size = human_bytes(stored_bytes(trace, spec))
            rows.add_row(
                visible(str(key)),
                visible(axes),
                spec.dtype,
                str(steps),
                size,
                visible(spec.op),
                visible(spec.source),
            )
        if not rows.row_count:
            raise UserError(f"{a}: no tensor is called {visible(pattern)}: `trace info {a}` lists the names")
        stdout().print(rows)
