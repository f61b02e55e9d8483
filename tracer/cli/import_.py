"""`trace import`: another engine's dumps and logs into a trace."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UserError

if TYPE_CHECKING:
    from ..assemble import Assembled
    from ..gguf import Model


def command(
    source: Annotated[
        Path | None, typer.Argument(help="Log, file or folder that another engine wrote.")
    ] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="The trace to write.")] = Path("trace.h5"),
    format_name: Annotated[str, typer.Option("--format", help="Force a format (see --list).")] = "",
    pattern: Annotated[str, typer.Option(help="How files are named: '{name}_{layer}_{step}.npy'.")] = "",
    map_file: Annotated[
        Path | None, typer.Option("--map", help="TOML file that says what your names are.")
    ] = None,
    regex: Annotated[
        str, typer.Option(help="Named groups for a log of your own: '(?P<name>..)..(?P<values>..)'.")
    ] = "",
    model: Annotated[
        str | None, typer.Option(help="The GGUF or known name that ran: gives heads, sizes, scales.")
    ] = None,
    heads: Annotated[int | None, typer.Option(min=1, help="Query heads, without --model.")] = None,
    kv_heads: Annotated[int | None, typer.Option(min=1, help="Key/value heads, without --model.")] = None,
    tokens: Annotated[str, typer.Option(help="Ids that were fed, where the source lacks them: 1,2,3.")] = "",
    prompt_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens of the first pass, where the source has its last one's rows."),
    ] = None,
    half_split: Annotated[
        bool,
        typer.Option(
            "--half-split", help="Put Q and K from transformers' order into that of a llama's GGUF."
        ),
    ] = False,
    steps: Annotated[str, typer.Option(help="Forward passes to import: 0-3,10.")] = "",
    rank: Annotated[
        int | None, typer.Option(min=0, help="Whose dump, where several processes wrote.")
    ] = None,
    engine: Annotated[str, typer.Option(help="Name of the engine, for the trace.")] = "",
    list_formats: Annotated[
        bool, typer.Option("--list", help="List the formats, or explain --format.")
    ] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print nothing but errors.")] = False,
) -> None:
    """Make a trace of what another engine left: a log, a folder of arrays, a raw stream.

    The format is recognised; names of llama.cpp, transformers, TransformerLens, SGLang and vLLM become ours,
    others are kept and listed.

    [bold]Examples:[/bold]

      llama-eval-callback -m m.gguf -p Hello > log.txt

      trace import log.txt -o ref.h5 --model m.gguf

      trace import dumps/ --pattern '{name}_{layer}_{step}.npy' --heads 9

      trace import run.log --regex '(?P<name>q|k) (?P<layer>.*): (?P<values>.*)'
    """
    if list_formats:
        _print_formats(format_name)
        return
    if source is None:
        raise UserError("name the log, file or folder to import (or --list)")
    from ..axes import Heads
    from ..importer import Options, import_dump

    options = Options(
        format=format_name,
        pattern=pattern,
        map=map_file,
        regex=regex,
        steps=steps,
        rank=rank,
        tokens=_ids(tokens),
        prompt_tokens=prompt_tokens,
        half_split=half_split,
        heads=Heads(heads, kv_heads),
        model=_model(model),
        engine=engine,
    )
    result = import_dump(source, output, options)
    if not quiet:
        print_result(result)


def print_result(result: "Assembled") -> None:
    """What was imported on standard output; what was not, and what to know of it, on standard error."""
    from ..text import human_bytes, visible
    from .console import stderr, stdout

    stdout().print(
        f"{result.path}: {result.tensors} tensors, {result.steps} steps, {human_bytes(result.bytes_written)}"
    )
    notes = list(result.notes)
    if result.own_names:
        notes.append(f"names kept as they are: {', '.join(result.own_names)}")
    if result.end:
        notes.append(f"the trace is marked incomplete: {result.end}")
    for note in notes:
        stderr().print(visible(note), style="yellow" if note.startswith("the trace is marked") else None)


def _print_formats(name: str) -> None:
    from .. import array_files
    from ..importer import importers
    from .console import stdout, table

    known = importers()
    if name and name not in known:
        raise UserError(f"--format {name}: one of {', '.join(known)}")
    if not name:
        rows = table("format", "what")
        for each, importer in known.items():
            rows.add_row(each, importer.SUMMARY)
        stdout().print(rows)
        return
    stdout().print(str(known[name].__doc__).strip())
    if hasattr(known[name], "read_files"):  # what holds for all files of arrays
        stdout().print(f"\n{str(array_files.__doc__).strip()}")


def _ids(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.replace(",", " ").split())
    except ValueError:
        raise UserError(f"--tokens {text!r}: give ids such as 1,2,3") from None


def _model(name: str | None) -> "Model | None":
    if name is None:
        return None
    from ..gguf import Model
    from ..hub import resolve

    return Model(resolve(name))
