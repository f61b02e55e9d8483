"""`trace record`: run a model and write every intermediate."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

    from ..format import Step, TensorSpec
    from ..record import Engine, Request, Result
    from .prompt import AnyTokenizer


def command(
    model: Annotated[
        str | None,
        typer.Argument(help="GGUF file or known name (default smollm2-135m); torch: also a folder."),
    ] = None,
    program: Annotated[
        list[str] | None, typer.Argument(help="With --exec: the program to run, and its arguments.")
    ] = None,
    prompt: Annotated[str | None, typer.Option("-p", "--prompt", help="Text to feed.")] = None,
    prompt_file: Annotated[Path | None, typer.Option(help="Read the text from a file (- for stdin).")] = None,
    tokens: Annotated[str | None, typer.Option(help="Feed these ids instead of a text: 1,2,3.")] = None,
    chat: Annotated[bool, typer.Option(help="Put the text into the model's chat template.")] = False,
    output: Annotated[Path, typer.Option("-o", "--output", help="The trace to write.")] = Path("trace.h5"),
    engine: Annotated[str, typer.Option(help="auto, cpu, cuda, llama.cpp or torch.")] = "auto",
    n_new: Annotated[int, typer.Option("-n", help="New tokens to generate.")] = 16,
    layers: Annotated[str | None, typer.Option(help="Layers to record: 0-3,10.")] = None,
    tensors: Annotated[str | None, typer.Option(help="Tensors to record, globs: 'q*,scores'.")] = None,
    token_range: Annotated[str | None, typer.Option(help="Tokens to record: 0-15,40-.")] = None,
    phase: Annotated[str | None, typer.Option(help="Record only prefill or only decode.")] = None,
    stats_only: Annotated[
        bool, typer.Option(help="Statistics of each row instead of whole tensors.")
    ] = False,
    dtype: Annotated[str, typer.Option(help="Storage: f32, f16, bf16 (f64 with --compute f64).")] = "f32",
    compute: Annotated[
        str, typer.Option(help="Arithmetic: f32; f64 on the CPU; f16, bf16 in torch.")
    ] = "f32",
    softmax: Annotated[str, typer.Option(help="online (KV tiles) or two-pass.")] = "online",
    tile: Annotated[int, typer.Option(min=1, help="Keys per tile of the online softmax.")] = 128,
    chunk: Annotated[int | None, typer.Option(min=1, help="Feed the prompt in chunks of this size.")] = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="0 keeps all.")] = 0,
    top_p: Annotated[float, typer.Option(help="1 keeps all.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of sampling.")] = 0,
    ignore_eos: Annotated[bool, typer.Option(help="Go on after an end-of-text token.")] = False,
    inject: Annotated[str | None, typer.Option(help="Put a fault in: CAUSE[@LAYERS][=VALUE].")] = None,
    memory: Annotated[str | None, typer.Option(help="Budget for dequantised weights: 4G, 800M.")] = None,
    compress: Annotated[
        bool, typer.Option(help="Deflate the finished trace (smaller, slower to read).")
    ] = False,
    flash_attn: Annotated[
        bool, typer.Option("--flash-attn", help="llama.cpp: flash attention, which shows no scores.")
    ] = False,
    kv_type: Annotated[
        str | None, typer.Option(help="llama.cpp: type of the KV cache: f32, f16, q8_0, …")
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Say what would be written and stop.")] = False,
    execute: Annotated[
        bool, typer.Option("--exec", help="Run a program that has tensortrace.h in it: --exec -- ./engine …")
    ] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print nothing but errors.")] = False,
    context: typer.Context = None,  # type: ignore[assignment]  # from typer; who calls this has none
) -> None:
    """Run a GGUF model and write every intermediate to a trace.

    [bold]Examples:[/bold]

      trace record -p "The capital of France is" -n 16 -o healthy.h5

      trace record -o mine.h5 --exec -- ./engine -m model.gguf -p "The capital"
    """
    if execute:
        from .execute import refuse_options, run_program

        refuse_options(context)
        run_program([*([model] if model else []), *(program or [])], output, quiet=quiet)
    if program:
        raise UserError(f"{program[0]}: there is one MODEL; to run a program put --exec in front of it")
    from ...analyze.cause import Injection
    from ..engine import graph_of, load, runs_graph
    from ..format import Header
    from ..gguf import Model
    from ..importer import model_facts
    from ..record import Request, record
    from ..repack import compress as compress_trace
    from ..sampling import Sampling
    from ..selection import Selection
    from ..text import parse_bytes, visible
    from .console import stderr
    from .prompt import open_model, read_prompt, tokenized_otherwise

    loaded, tokenizer = open_model(model, engine, parse_bytes(memory, "--memory") if memory else None)
    text, ids = read_prompt(tokenizer, prompt, prompt_file, tokens, chat)
    graph = graph_of(engine, loaded, softmax=softmax, tile=tile) if isinstance(loaded, Model) else None
    if inject:
        fault = Injection.parse(inject)
        if graph is None or not runs_graph(engine):
            raise UserError(f"--inject needs an engine that runs our own operations: {engine} brings its own")
        graph = fault.apply(graph)
        ids = fault.cause.change_ids(ids, loaded.metadata)
    file = loaded if isinstance(loaded, Model) else loaded.path
    options = _engine_options(engine, flash_attn, kv_type)
    runner = load(engine, graph, file, dtype=_dtype(compute, "--compute"), **options)
    request = Request(
        ids,
        n_new=n_new,
        sampling=Sampling(temperature, top_k, top_p, seed),
        selection=Selection(layers, tensors, token_range, phase),
        storage=_dtype(dtype, "--dtype"),
        chunk=chunk,
        stats_only=stats_only,
        stop_ids=frozenset() if ignore_eos else tokenizer.stop_ids,
        piece=tokenizer.piece,
    )
    if dry_run:
        _print_plan(runner, request, output)
        return
    if text and (difference := tokenized_otherwise(runner, text, ids, chat=chat)):
        stderr().print(visible(difference), style="yellow")
    header = Header(
        engine="",
        prompt=text,
        settings=_settings(engine, softmax, tile, chunk),
        injected=inject or "",
        **model_facts(loaded),
    )
    with _Progress(tokenizer, request, text, quiet) as progress:
        result = record(runner, request, output, header, on_token=progress.token, on_step=progress.step)
    if compress:
        compress_trace(output)
    if not quiet:
        _print_result(result, output)


def _dtype(short: str, option: str) -> str:
    names = {"f16": "float16", "bf16": "bfloat16", "f32": "float32", "f64": "float64"}
    if short not in names:
        raise UserError(f"{option} {short}: one of {', '.join(names)}")
    return names[short]


def _settings(engine: str, softmax: str, tile: int, chunk: int | None) -> dict[str, Any]:
    """What was asked of the run; how softmax is computed is ours to say only where our kernels run."""
    from ..engine import runs_graph

    return {"chunk": chunk} | ({"softmax": softmax, "tile": tile} if runs_graph(engine) else {})


def _engine_options(engine: str, flash_attn: bool, kv_type: str | None) -> dict[str, Any]:
    """What was asked of llama.cpp; UserError where another engine would not do it."""
    options = ({"flash": True} if flash_attn else {}) | ({"kv": kv_type} if kv_type else {})
    if options and engine != "llama.cpp":
        raise UserError("--flash-attn and --kv-type are for --engine llama.cpp")
    return options


class _Progress:
    """The text as it comes on standard output, a progress bar on standard error where that is a terminal."""

    def __init__(self, tokenizer: "AnyTokenizer", request: "Request", text: str, quiet: bool):
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        from .console import stderr, stdout

        self.quiet, self.out, self.stream = quiet, stdout(), tokenizer.stream()
        self.text, self.steps = text, len(request.steps)
        console = stderr()
        columns = (TextColumn("recording"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self.bar = Progress(
            *columns, console=console, transient=True, disable=quiet or not console.is_terminal
        )

    def __enter__(self) -> "_Progress":
        self.bar.start()
        self.task = self.bar.add_task("", total=self.steps)
        return self

    def token(self, token: int) -> None:
        self._show(self.stream.push(token))

    def step(self, step: "Step") -> None:
        self.bar.advance(self.task)

    def _show(self, text: str) -> None:
        import sys

        from ..text import visible

        if not self.quiet:
            sys.stdout.write("\n".join(visible(line) for line in text.split("\n")))
            sys.stdout.flush()

    def __exit__(self, *error: object) -> None:
        self.bar.stop()
        self._show(self.stream.flush() + "\n")


def _print_plan(engine: "Engine", request: "Request", output: Path) -> None:
    from ..record import plan
    from ..text import human_bytes
    from .console import stdout

    asked, stored = plan(engine, request)
    rows, total = _tensor_table(stored, request.steps, f"{output} would hold")
    stdout().print(rows)
    last = request.steps[-1]
    stdout().print(f"{last.index + 1} steps, {last.kv_len} tokens, {human_bytes(total)} in all")
    if memory := getattr(engine, "memory", None):
        needed = memory([spec.key for spec in asked], request.steps)
        stdout().print(f"{human_bytes(needed)} of GPU memory")


def _print_result(result: "Result", output: Path) -> None:
    from ..text import human_bytes
    from ..trace import Trace
    from .console import stdout

    with Trace(output) as trace:
        rows, _ = _tensor_table(list(trace.tensors.values()), trace.flushed, None)
    stdout().print(rows)
    stdout().print(
        f"{output}: {result.tensors} tensors, {result.steps} steps, {len(result.generated)} new tokens, "
        f"{human_bytes(result.bytes_written)}"
    )


def _tensor_table(specs: list["TensorSpec"], steps: list["Step"], title: str | None) -> tuple["Table", int]:
    """A table of the tensors by name, and their bytes in all."""
    from ..format import numpy_dtype
    from ..plan import trace_bytes
    from ..text import human_bytes
    from .console import table

    rows, total = table("tensor", "axes", ">layers", ">bytes", title=title), 0
    for name in dict.fromkeys(spec.key.name for spec in specs):
        same = [spec for spec in specs if spec.key.name == name]
        size = trace_bytes(same, steps, numpy_dtype(same[0].dtype).itemsize)
        total += size
        rows.add_row(name, ",".join(same[0].axes), str(len(same)), human_bytes(size))
    return rows, total
