"""`trace weights`: the tensors of a GGUF as an engine sees them, and what an engine loaded against them."""

from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from ..errors import UserError

if TYPE_CHECKING:
    from ...analyze.weight_check import Verdict
    from ..gguf import Model

FIRST = 4  # values that are shown of each tensor
PART = 1 << 22  # elements dequantised at once: 16 MiB as float32


def command(
    model: Annotated[str, typer.Argument(help="GGUF file or known name.")],
    name: Annotated[
        str | None, typer.Argument(help="A tensor or glob such as 'blk.0.*': adds values and statistics.")
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(metavar="DUMP", help="What an engine loaded: .npy, .safetensors, .bin, text."),
    ] = None,
    json: Annotated[
        str | None, typer.Option("--json", metavar="PATH|-", help="Write the list as JSON.")
    ] = None,
) -> None:
    """List a model's tensors: shape, storage type, and for those asked for their first values and statistics.

    With --against, say of each array of a dump whether an engine loaded it right: transposed, permuted,
    nibbles swapped, a minimum missing, another tensor, … Exit code 0: all are right; 1: one is not.

    [bold]Examples:[/bold]

      trace weights smollm2-135m 'blk.0.attn_*'

      trace weights model.gguf blk.0.attn_q.weight --against q_as_loaded.npy
    """
    from ..gguf import Model
    from ..hub import resolve
    from .console import write_json

    loaded = Model(resolve(model))
    if against is not None:
        _check(loaded, name, against, json)
    names = _matching(loaded, name) if name else list(loaded.names)
    listed = [_describe(loaded, each, values=name is not None) for each in names]
    if json:
        write_json({"model": loaded.name, "architecture": loaded.arch, "tensors": listed}, json)
    if json != "-":
        _print(loaded, listed, whole=len(listed) == 1 and name is not None)


def _check(model: "Model", name: str | None, dump: Path, json: str | None) -> NoReturn:
    """Compare a dump with the model, and exit."""
    from ...analyze.weight_check import check_all
    from ...analyze.weight_dump import read_dump
    from .console import write_json

    if name is not None:
        model.shape(name)  # raises, with the name that is nearest
    verdicts = check_all(model, read_dump(dump), name or "")
    if json:
        checked = [verdict.to_json() for verdict in verdicts]
        write_json({"model": model.name, "architecture": model.arch, "checked": checked}, json)
    if json != "-":
        _print_verdicts(verdicts)
    raise typer.Exit(0 if all(verdict.is_right for verdict in verdicts) else 1)


def _print_verdicts(verdicts: list["Verdict"]) -> None:
    from rich.text import Text

    from ..text import visible
    from .console import stdout, table

    rows = table("dump", "tensor", "kind", "message", ">nrmse", ">values")
    for verdict in verdicts:
        kind = Text(verdict.kind, style="green" if verdict.is_right else "red")
        nrmse = f"{verdict.nrmse:.1e}" if isfinite(verdict.nrmse) else "-"
        texts = (visible(text) for text in (verdict.name, verdict.tensor or "-"))
        rows.add_row(*texts, kind, visible(verdict.message), nrmse, str(verdict.values))
    stdout().print(rows)


def _matching(model: "Model", pattern: str) -> list[str]:
    from fnmatch import fnmatchcase

    if pattern in model:
        return [pattern]
    if found := [name for name in model.names if fnmatchcase(name, pattern)]:
        return found
    if any(character in pattern for character in "*?["):
        raise UserError(f"{model.path}: no tensor matches {pattern}: `trace weights {model.path}` lists them")
    model.shape(pattern)  # raises, with the name that is nearest
    return []


def _describe(model: "Model", name: str, *, values: bool) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "name": name,
        "type": model.tensor_type(name),
        "shape": list(model.shape(name)),
        "bytes": model.raw(name).nbytes,
    }
    if values:
        first, figures = _measure(model, name)
        entry |= {"first": first, **figures}
    return entry


def _measure(model: "Model", name: str) -> tuple[list[float], dict[str, Any]]:
    """The first values in the order of the file, and statistics over all, a few rows at a time."""
    import numpy as np

    from .values import statistics

    shape = model.shape(name)
    if len(shape) == 1:
        whole = model.weight(name)
        return whole[:FIRST].tolist(), statistics(whole)
    count = max(1, PART // int(np.prod(shape[1:])))
    first: list[float] = []
    parts = []
    for start in range(0, shape[0], count):
        part = model.rows(name, np.arange(start, min(start + count, shape[0])))
        first = first or part.reshape(-1)[:FIRST].tolist()
        parts.append(statistics(part))
    return first, _joined(parts)


def _joined(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """The statistics of parts as those of the whole; parts without a finite value count for nothing."""
    total = {name: sum(part[name] for part in parts) for name in ("count", "zero", "nan", "inf")}
    weighed = [(part, part["count"] - part["nan"] - part["inf"]) for part in parts]
    weighed = [(part, weight) for part, weight in weighed if weight] or [(parts[0], 1)]
    finite = sum(weight for _, weight in weighed)
    return total | {
        "min": min(part["min"] for part, _ in weighed),
        "max": max(part["max"] for part, _ in weighed),
        "mean": sum(part["mean"] * weight for part, weight in weighed) / finite,
        "rms": (sum(part["rms"] ** 2 * weight for part, weight in weighed) / finite) ** 0.5,
    }


def _print(model: "Model", listed: list[dict[str, Any]], *, whole: bool) -> None:
    from rich.text import Text

    from ..text import human_bytes, visible
    from .console import stdout, table

    console, measured = stdout(), "rms" in listed[0] if listed else False
    total = human_bytes(sum(entry["bytes"] for entry in listed))
    title = Text(visible(model.name), style="bold")
    console.print(title.append(visible(f"  {model.arch}, {len(listed)} tensors, {total}"), style="not bold"))
    columns = ("first values", ">min", ">max", ">mean", ">rms", ">NaN/Inf") if measured else ()
    rows = table("tensor", "type", ">shape", ">bytes", *columns)
    for entry in listed:
        shape = " × ".join(map(str, entry["shape"]))
        cells = [visible(entry["name"]), entry["type"], shape, human_bytes(entry["bytes"])]
        if measured:
            figures = [f"{entry[figure]:.4g}" for figure in ("min", "max", "mean", "rms")]
            first = " ".join(f"{value:.4g}" for value in entry["first"])
            cells += [f"{first} …", *figures, str(entry["nan"] + entry["inf"] or "")]
        rows.add_row(*cells)
    console.print(rows)
    if whole:
        _print_values(model, listed[0]["name"])


def _print_values(model: "Model", name: str) -> None:
    """A corner of one tensor, axes named as in a projection: [out, in]."""
    import numpy as np

    from .console import stdout
    from .values import ROWS, grid

    shape = model.shape(name)
    axes = (
        ["expert", "out", "in"][-len(shape) :]
        if len(shape) < 4
        else [f"axis {at}" for at in range(len(shape))]
    )
    if len(shape) == 2:  # only the rows that are shown are dequantised
        head, tail = np.arange(min(shape[0], ROWS)), np.arange(max(shape[0] - ROWS, 0), shape[0])
        ids = np.unique(np.concatenate([head, tail]))
        shown, note = grid(model.rows(name, ids), axes, lambda axis, at: str(ids[at]))
    else:
        shown, note = grid(model.weight(name), axes)
    stdout().print()
    stdout().print(shown)
    if note:
        stdout().print(note)
