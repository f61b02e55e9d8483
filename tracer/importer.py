"""Importers: each file of `importers/` reads one format that other engines leave behind.

A module there is an importer when it has `FORMAT` (its name), `SUMMARY` (one line), `sniff(path, head)` and
`read(path, options)`.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any, Protocol, cast

from .assemble import Assembled, assemble
from .axes import Heads
from .dump import Dump, Piece
from .errors import ModelError, UserError
from .format import Header, TensorSpec
from .names import Key
from .selection import parse_ranges
from .text import visible

if TYPE_CHECKING:
    from .checkpoint import Checkpoint
    from .gguf import Model

_HEAD = 1 << 16  # bytes of a file that a format is recognised by


@dataclass(frozen=True)
class Options:
    """What the user says of a source; each importer uses what concerns it."""

    format: str = ""
    pattern: str = ""
    map: Path | None = None
    regex: str = ""
    steps: str = ""
    rank: int | None = None
    tokens: tuple[int, ...] = ()
    prompt_tokens: int | None = None
    half_split: bool = False
    heads: Heads = field(default_factory=Heads)
    model: "Model | None" = None
    engine: str = ""

    def expected(self) -> dict[Key, TensorSpec]:
        """The tensors that the model has; none where the model or its architecture is not known."""
        if self.model is None:
            return {}
        from .architecture import build_graph
        from .plan import tensor_specs

        try:
            graph = build_graph(self.model)
        except ModelError:  # a trace of any model can be imported; only less is known of it
            return {}
        return {spec.key: spec for spec in tensor_specs(graph, graph.outputs, "float32")}


class Importer(Protocol):
    """What a module of `importers/` offers."""

    FORMAT: str
    SUMMARY: str

    def sniff(self, path: Path, head: bytes) -> bool:
        """Whether `path` is of this format; `head` is how the file begins, empty for a folder."""

    def read(self, path: Path, options: Options) -> Dump:
        """What is in it; UserError, in one line, where it is not what it seems to be."""


def importers() -> dict[str, Importer]:
    """Every importer by the name of its format."""
    package = import_module(".importers", __package__)
    names = sorted(entry.name for entry in iter_modules(package.__path__))
    modules = (import_module(f".importers.{name}", __package__) for name in names)
    return {module.FORMAT: cast(Importer, module) for module in modules if hasattr(module, "FORMAT")}


def import_dump(source: Path, output: Path, options: Options) -> Assembled:
    """Make the trace `output` of `source`; UserError, and no file, where that cannot be done whole."""
    importer = choose(source, options)
    if output.exists() and output.samefile(source):
        raise UserError(f"{output} is the source itself: choose another name for the trace")
    try:
        dump = importer.read(source, options)
        return assemble(_with_options(dump, source, importer.FORMAT, options), output)
    except OSError as error:
        raise UserError(f"cannot read {error.filename or source}: {error.strerror or error}") from error
    except UserError as error:
        shown = visible(str(error))  # it may quote what the source says
        if shown == str(error):
            raise
        raise UserError(shown) from error


def choose(source: Path, options: Options) -> Importer:
    """The importer for `source`: the one asked for, else the only one that recognises it."""
    known = importers()
    if not source.exists():
        raise UserError(f"no such file or folder: {source}")
    if wanted := options.format or (options.regex and "regex"):
        if wanted not in known:
            raise UserError(f"--format {wanted}: one of {', '.join(known)}")
        return known[wanted]
    head = _head(source)
    matching = [importer for importer in known.values() if importer.sniff(source, head)]
    if len(matching) == 1:
        return matching[0]
    names = ", ".join(importer.FORMAT for importer in matching or known.values())
    if matching:
        raise UserError(f"{source} could be {names}: choose with --format")
    raise UserError(f"{source} is in no format that is recognised: name it with --format ({names})")


def _head(source: Path) -> bytes:
    if source.is_dir():
        return b""
    if not source.is_file():
        raise UserError(f"{source} is neither a file nor a folder")
    try:
        with source.open("rb") as file:
            return file.read(_HEAD)
    except OSError as error:
        raise UserError(f"cannot read {source}: {error.strerror}") from error


def _with_options(dump: Dump, source: Path, format_name: str, options: Options) -> Dump:
    """The dump with what the user knows better: the engine, the model, token ids, which steps are wanted."""
    settings = {**dump.header.settings, "imported": format_name, "source": source.name}
    header = replace(dump.header, engine=options.engine or dump.header.engine, settings=settings)
    heads = options.heads.or_else(dump.heads)
    if options.model is not None:
        header = replace(header, **model_facts(options.model))
        heads = heads.or_else(model_heads(options.model))
    only = tuple(parse_ranges(options.steps, "--steps")) if options.steps else dump.only
    tokens, steps = options.tokens or dump.tokens, dict(dump.steps)
    if options.prompt_tokens is not None:
        first = min((*steps, *(piece.step for piece in dump.pieces)), default=0)
        steps[first] = replace(dump.step(first), n_tokens=options.prompt_tokens, start=0)
    return replace(
        dump,
        header=header,
        heads=heads,
        only=only,
        tokens=tokens,
        steps=steps,
        half_split=options.half_split,
    )


def model_facts(model: "Model | Checkpoint") -> dict[str, Any]:
    """What a trace's header says of a model."""
    scalars = {k: v for k, v in model.metadata.items() if isinstance(v, (str, int, float, bool))}
    return {
        "model_name": model.name,
        "model_sha256": model.sha256,
        "architecture": model.arch,
        "hyperparameters": {k: v for k, v in scalars.items() if k.startswith(f"{model.arch}.")},
    }


def model_heads(model: "Model") -> Heads:
    """The heads of a model in which all layers have as many."""
    query = model.hparam("attention.head_count", None)
    key = model.hparam("attention.head_count_kv", query)
    return Heads(*(count if isinstance(count, int) else None for count in (query, key)))


def number_steps(pieces: Iterable[Piece]) -> list[Piece]:
    """Pieces of a source that does not announce its forward passes: a name that comes again begins one."""
    numbered, step = [], 0
    seen: set[Key] = set()
    for piece in pieces:
        if piece.key in seen:
            step, seen = step + 1, set()
        seen.add(piece.key)
        numbered.append(replace(piece, step=step))
    return numbered


def header_of(facts: dict[str, Any], default_engine: str) -> Header:
    """A header from loose facts, of which those that it has are used."""
    texts = {
        "engine_version",
        "model_name",
        "model_sha256",
        "architecture",
        "prompt",
        "compute_dtype",
        "device",
    }
    known: dict[str, Any] = {name: str(facts[name]) for name in sorted(texts & facts.keys())}
    return Header(engine=str(facts.get("engine") or default_engine), **known)
