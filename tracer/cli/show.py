"""`trace show`: the values of one tensor of a trace."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UserError

if TYPE_CHECKING:
    from ..names import Key
    from ..trace import Trace


def command(
    a: Annotated[Path, typer.Argument(help="The trace.", metavar="A.h5")],
    name: Annotated[str, typer.Argument(help="The tensor: q, 'L03 q', layers/03/q or 3.q.")],
    layer: Annotated[int | None, typer.Option(help="Its layer (default: the first that has it).")] = None,
    step: Annotated[int | None, typer.Option(help="The step (default: the first that has it).")] = None,
    part: Annotated[
        str | None, typer.Option("--slice", help="A number or a range for each axis: '0,:4,::8'.")
    ] = None,
    json: Annotated[
        str | None, typer.Option("--json", metavar="PATH|-", help="Write shape, statistics and all values.")
    ] = None,
) -> None:
    """Show shape, statistics and a corner of the values of a tensor in one step.

    [bold]Example:[/bold]  trace show healthy.h5 q --layer 3 --slice '-1,:,:8'
    """
    from ..text import visible
    from ..trace import Trace
    from .console import stdout, write_json
    from .values import grid, kept_axes, parse_slice, statistics, statistics_line, to_list

    with Trace(a) as trace:
        key = find(trace, name, layer)
        step = _step(trace, key, step)
        spec, array = trace.tensors[key], trace.read(key, step)
        index = parse_slice(part, spec.axes, array.shape) if part else (slice(None),) * array.ndim
        chosen, axes = array[index], kept_axes(spec.axes, index)
        figures = statistics(chosen)
        if json:
            about = {"name": key.name, "layer": key.layer, "step": step, "axes": axes, "dtype": spec.dtype}
            values = {"shape": list(chosen.shape), "statistics": figures, "values": to_list(chosen)}
            write_json(about | values, json)
            if json == "-":
                return
        sizes = (
            ", ".join(f"{axis} {size}" for axis, size in zip(axes, chosen.shape, strict=True)) or "one value"
        )
        console = stdout()
        console.print(visible(f"{key}, step {step} ({trace.steps[step].phase}): {sizes}; {spec.dtype}"))
        console.print(statistics_line(figures) + "\n" if chosen.size else "no values")
        if chosen.size:
            shown, note = grid(chosen, axes, _labels(trace, step, part))
            console.print(shown)
            notes = [note] if note else []
            if spec.conventions.get("partial"):
                notes.append("nan: not printed in the log that this was read off")
            if notes:
                console.print("\n" + "\n".join(notes))


def find(trace: "Trace", name: str, layer: int | None) -> "Key":
    """The key that `name` means; UserError where there is none or where it contradicts `layer`."""
    from difflib import get_close_matches

    from ..text import visible

    own, bare = _split(name)
    if own is not None and layer is not None and own != layer:
        raise UserError(f"{visible(name)} is in layer {own}, --layer says {layer}")
    wanted = own if own is not None else layer
    found = [key for key in trace.tensors if key.name == bare and wanted in (None, key.layer)]
    if found:
        return found[0]
    layers = [key for key in trace.tensors if key.name == bare]
    if layers:
        raise UserError(
            f"{trace.path} has no {visible(bare)} in layer {wanted}: `trace ls` lists what it has"
        )
    near = get_close_matches(bare, {key.name for key in trace.tensors}, n=1)
    hint = f" (is {visible(near[0])} meant?)" if near else ": `trace ls` lists what it has"
    raise UserError(f"{trace.path} has no tensor {visible(name)}{hint}")


def _split(name: str) -> tuple[int | None, str]:
    """The layer, where the name says one, and the bare name."""
    import re

    for form in (r"[Ll](\d+)[ ./_]+(.+)", r"/?layers/(\d+)/(.+)", r"(\d+)\.(.+)"):
        if match := re.fullmatch(form, name):
            return int(match[1]), match[2]
    return None, name.removeprefix("/")


def _step(trace: "Trace", key: "Key", step: int | None) -> int:
    if step is None:
        written = (info.index for info in trace.steps if trace.has(key, info.index))
        step = next(written, None)
        if step is None:
            raise UserError(f"{trace.path}: {key} was not written in any step")
    if not 0 <= step < len(trace.steps):
        raise UserError(f"--step {step}: {trace.path} has steps 0 to {len(trace.steps) - 1}")
    return step


def _labels(trace: "Trace", step: int, part: str | None):
    """Names the rows of tokens by position and text, where no slice has moved them."""
    from ..format import ROW_AXES
    from ..text import visible

    rows, pieces = trace.rows(step), trace.pieces

    def label(axis: str, at: int) -> str:
        if part or axis not in ROW_AXES:
            return str(at)
        token = int(rows[at])
        piece = pieces[token].decode("utf-8", "replace") if token < len(pieces) else ""
        return f"{token} {visible(piece, 12)}".rstrip()

    return label
