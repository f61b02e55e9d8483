"""`trace info`: what a trace is of, how far it got, and what it holds."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ..trace import Trace

PREVIEW = 60  # characters of a prompt or a generated text that are shown


def command(
    a: Annotated[Path, typer.Argument(help="The trace.", metavar="A.h5")],
    check: Annotated[bool, typer.Option(help="Read everything and verify the checksums.")] = False,
    json: Annotated[
        str | None, typer.Option("--json", metavar="PATH|-", help="Write all of it as JSON.")
    ] = None,
) -> None:
    """Show engine, model, prompt, steps and tensors of a trace, and whether it is complete.

    Exits with 1 where --check finds damage.

    [bold]Example:[/bold]  trace info healthy.h5 --check
    """
    from ..trace import Trace
    from .console import write_json

    with Trace(a) as trace:
        facts = describe(trace)
        if check:
            facts["damaged"] = [{"step": step, "tensor": str(key)} for step, key in trace.damaged()]
        if json:
            write_json(facts, json)
        if json != "-":
            _print(facts)
    if facts.get("damaged"):
        raise typer.Exit(1)


def describe(trace: "Trace") -> dict[str, Any]:
    """Everything that `trace info` tells, as JSON writes it."""
    header = trace.header
    return {
        "path": str(trace.path),
        "bytes": trace.path.stat().st_size,
        "engine": header.engine,
        "engine_version": header.engine_version,
        "device": header.device,
        "host": header.host,
        "created": header.created,
        "tool_version": header.tool_version,
        "model": header.model_name,
        "model_sha256": header.model_sha256,
        "architecture": header.architecture,
        "hyperparameters": header.hyperparameters,
        "compute_dtype": header.compute_dtype,
        "storage_dtype": header.storage_dtype,
        "settings": header.settings,
        "sampling": header.sampling,
        "injected": header.injected,
        "prompt": header.prompt,
        "generated": generated_text(trace),
        "tokens": trace.n_tokens,
        "prompt_tokens": len(trace.prompt_ids),
        "recorded_tokens": len(trace.recorded),
        "steps": len(trace.steps),
        "flushed_steps": len(trace.flushed),
        "prefill_steps": sum(step.phase == "prefill" for step in trace.steps),
        "complete": trace.complete,
        "tensors": _tensors(trace),
    }


def generated_text(trace: "Trace") -> str:
    """What the model wrote, but for its last token: that was never fed, so the trace has no text of it."""
    return b"".join(trace.pieces[len(trace.prompt_ids) :]).decode("utf-8", "replace")


def _tensors(trace: "Trace") -> list[dict[str, Any]]:
    """One entry for each name, layers together."""
    from ...analyze.anomaly import ranges

    grouped: dict[str, list] = {}
    for spec in trace.tensors.values():
        grouped.setdefault(spec.key.name, []).append(spec)
    return [
        {
            "name": name,
            "axes": list(specs[0].axes),
            "dtype": specs[0].dtype,
            "layers": ranges(spec.key.layer for spec in specs if spec.key.layer is not None),
            "bytes": sum(stored_bytes(trace, spec) for spec in specs),
        }
        for name, specs in grouped.items()
    ]


def stored_bytes(trace: "Trace", spec) -> int:
    """Bytes of a tensor over the steps in which it was written."""
    import math

    from ..format import numpy_dtype

    steps = (step for step in trace.steps if trace.has(spec.key, step.index))
    sizes = (math.prod(spec.shape(len(trace.rows(step.index)), step.kv_len)) for step in steps)
    return sum(sizes) * numpy_dtype(spec.dtype).itemsize


def _print(facts: dict[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    from ..text import human_bytes, visible
    from .console import stdout, table

    console, grid = stdout(), Table.grid(padding=(0, 2))
    console.print(
        Text(visible(facts["path"]), style="bold").append(f"  {human_bytes(facts['bytes'])}", "not bold")
    )
    for label, text in _lines(facts):
        if text:
            grid.add_row(Text(f"  {label}", style="dim"), visible(text))
    console.print(grid)
    rows = table("tensor", "axes", "dtype", "layers", ">bytes")
    for entry in facts["tensors"]:
        size = human_bytes(entry["bytes"])
        rows.add_row(visible(entry["name"]), ",".join(entry["axes"]), entry["dtype"], entry["layers"], size)
    console.print()
    console.print(rows)
    if "damaged" in facts:
        console.print()
        console.print(_verdict(facts["damaged"]))


def _lines(facts: dict[str, Any]) -> list[tuple[str, str]]:
    engine = " ".join(part for part in (facts["engine"], facts["engine_version"]) if part)
    decodes = facts["steps"] - facts["prefill_steps"]
    model, sha = facts["model"], facts["model_sha256"]
    return [
        ("engine", f"{engine} on {facts['device']}, computed in {facts['compute_dtype']}"),
        (
            "model",
            " ".join(filter(None, (model, f"({facts['architecture']})", sha and f"SHA-256 {sha[:12]}…"))),
        ),
        ("prompt", f"{_quoted(facts['prompt'])} ({facts['prompt_tokens']} tokens)"),
        ("text", _quoted(facts["generated"]) if facts["generated"] else ""),
        ("steps", f"{facts['prefill_steps']} prefill, {decodes} decode; {facts['tokens']} tokens"),
        ("state", _state(facts)),
        ("fault", facts["injected"] and f"{facts['injected']} was put in (--inject)"),
        ("written", f"{facts['created']} by tensortrace {facts['tool_version']}" if facts["created"] else ""),
    ]


def _quoted(text: str) -> str:
    from ..text import visible

    return f"“{visible(text, PREVIEW)}”" if text else "given as ids"


def _state(facts: dict[str, Any]) -> str:
    if facts["complete"]:
        return "complete"
    return f"incomplete: {facts['flushed_steps']} of {facts['steps']} steps were written"


def _verdict(damaged: list[dict[str, Any]]) -> str:
    from ..text import visible

    if not damaged:
        return "every checksum is right"
    first = ", ".join(f"{visible(entry['tensor'])} of step {entry['step']}" for entry in damaged[:4])
    more = f" and {len(damaged) - 4} more" if len(damaged) > 4 else ""
    return f"DAMAGED: {first}{more} do not have the bytes that were written"
