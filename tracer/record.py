"""The recording loop, one for every engine: prefill, decode, sample, write."""

import platform
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

import numpy as np

from . import stats
from .errors import UserError
from .format import Header, Step, TensorSpec, plan_steps
from .names import Key
from .packed import Pending, Places, let_go, unpack
from .repack import shorten
from .sampling import Sampler, Sampling
from .selection import Selection
from .writer import TraceWriter


class Stepper(Protocol):
    """A model in mid-run."""

    def step(self, step: Step, ids: np.ndarray, sink: "Sink") -> np.ndarray:
        """Feed `ids`, hand every wanted tensor to `sink`, return logits [token or last token, vocab]."""


class Engine(Protocol):
    """Something that can run a model and show its intermediates."""

    name: str
    version: str
    device: str
    compute_dtype: str

    def available(self) -> list[Key]: ...
    def specs(self, keys: Iterable[Key], storage: str) -> list[TensorSpec]: ...
    def start(self, wanted: Collection[Key], max_tokens: int) -> Stepper: ...


@dataclass(frozen=True)
class Request:
    """What to run and what to keep.  `piece` gives a token's bytes; `stop_ids` end the generation."""

    ids: Sequence[int]
    n_new: int = 1
    sampling: Sampling = field(default_factory=Sampling)
    selection: Selection = field(default_factory=Selection)
    storage: str = "float32"
    chunk: int | None = None
    stats_only: bool = False
    stop_ids: frozenset[int] = frozenset()
    piece: Callable[[int], bytes] | None = None

    def __post_init__(self) -> None:
        if not len(self.ids):
            raise UserError("the prompt has no tokens: give a text with -p, or ids with --tokens")
        if self.n_new < 1:
            raise UserError("-n must be at least 1: the last prefill position always predicts one token")
        if self.chunk is not None and self.chunk < 1:
            raise UserError("--chunk must be at least 1 token")

    @property
    def steps(self) -> list[Step]:
        return plan_steps(len(self.ids), self.n_new, self.chunk)


@dataclass(frozen=True)
class Result:
    """What a recording produced."""

    path: Path
    generated: list[int]
    steps: int
    tensors: int
    bytes_written: int


def plan(engine: Engine, request: Request) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """The tensors that the engine is asked for, and what is stored of them."""
    keys = request.selection.keys(engine.available())
    asked = engine.specs(keys, request.storage)
    stored = [made for spec in asked for made in stats.specs(spec)] if request.stats_only else asked
    return asked, stored


def record(
    engine: Engine,
    request: Request,
    path: Path,
    header: Header,
    *,
    on_token: Callable[[int], None] = lambda token: None,
    on_step: Callable[[Step], None] = lambda step: None,
) -> Result:
    """Run `engine` and write the trace; on_token is called with each new id, on_step after each step."""
    steps = request.steps
    asked, stored = plan(engine, request)
    recorded = request.selection.token_indices(steps)
    stepper = engine.start([spec.key for spec in asked], steps[-1].kv_len)
    sampler, ids = Sampler(request.sampling), list(request.ids)
    generated: list[int] = []
    with TraceWriter(path, _complete(header, engine, request), stored, steps, recorded=recorded) as writer:
        sink = Sink(writer, asked if request.stats_only else [])
        for step in steps:
            fed = np.asarray(ids[step.start : step.kv_len])
            _write_tokens(writer, request, step.start, fed)
            logits = stepper.step(step, fed, sink.of(step))
            if step.kv_len >= len(request.ids):
                token = sampler(logits[-1])
                writer.write_generated(len(generated), token)
                generated.append(token)
                ids.append(token)
                on_token(token)
            writer.end_step(step.index)
            on_step(step)
            if generated and token in request.stop_ids:
                break
        writer.finish()
    done = step.index + 1
    if done < len(steps):
        shorten(path, done)
    return Result(path, generated, done, len(stored), writer.bytes_written)


class Sink:
    """Where an engine puts the tensors of the step that it is in: called with (key, array), or with `packed`.

    Arrays may still be on their way from a GPU (`packed.Pending`); they are not to be changed afterwards.
    """

    def __init__(self, writer: TraceWriter, summarized: list[TensorSpec]):
        """`summarized` are the tensors of which only statistics are kept."""
        self._writer = writer
        self._summarized = {spec.key: spec for spec in summarized}

    def of(self, step: Step) -> "Sink":
        self._step = step
        return self

    def __call__(self, key: Key, array: np.ndarray | Pending) -> None:
        if key not in self._summarized:
            self._writer.write(self._step.index, key, array)
            return
        values = array if isinstance(array, np.ndarray) else np.array(array)
        let_go(array)
        for made, figures in stats.summarize(self._summarized[key], values).items():
            self._writer.write(self._step.index, made, figures)

    def packed(self, block: Pending, places: Places) -> None:
        """All tensors of a decode step side by side, each shaped as its row in the trace."""
        if not self._summarized:
            self._writer.write_packed(self._step.index, block, places)
            return
        for key, array in unpack(np.array(block), places):
            shape = self._summarized[key].shape(1, self._step.kv_len)  # not what pads it to the longest step
            self(key, array[tuple(map(slice, shape))])
        block.release()


def _write_tokens(writer: TraceWriter, request: Request, start: int, ids: np.ndarray) -> None:
    pieces = None if request.piece is None else [request.piece(int(token)) for token in ids]
    writer.write_tokens(start, ids, pieces)


def _complete(header: Header, engine: Engine, request: Request) -> Header:
    sampling = request.sampling
    return replace(
        header,
        engine=engine.name,
        engine_version=engine.version,
        device=engine.device,
        compute_dtype=engine.compute_dtype,
        storage_dtype=request.storage,
        settings={**header.settings, **getattr(engine, "settings", {})},
        sampling={
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "seed": sampling.seed,
            "n_new": request.n_new,
        },
        host=platform.platform(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        tool_version=version("tensortrace"),
    )
