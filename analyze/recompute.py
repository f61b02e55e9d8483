"""One pass over a model's graph that recomputes, in float64, every tensor that a trace recorded.

Each op reads what the trace recorded of its inputs.  Where one was not recorded, what the ops before it gave
is passed on instead, back to the nearest recorded tensors: those ops and this one are replayed as one.  They
are then run twice, exactly and with the rounding of the trace's engine, and the difference says how much
rounding does to the whole of them.

Ops other than attention work on each token alone, so that decode steps are replayed many at a time.  Memory
is a few blocks of rows, the weights of one op, and what is passed on.
"""

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from ..kernels.blas import one_thread_each
from ..tracer.errors import UserError
from ..tracer.format import Step, numpy_dtype
from ..tracer.gguf import Model
from ..tracer.graph import POSITIONS, TOKENS, Op
from ..tracer.names import Key
from ..tracer.trace import Trace
from .allowance import SLACK, Allowance, length
from .fitted import Fitted
from .mapped import give_back
from .replay import graph_of
from .sources import Source

ROWS = 128  # tokens of a block: as many queries as attention takes at once

Arrays = dict[Key, np.ndarray]


class Span(NamedTuple):
    """A block of recorded rows of one prefill step or of several decode steps; `step` [row]."""

    rows: slice
    step: np.ndarray
    decode: bool


class Passed(NamedTuple):
    """A tensor that was not recorded, for all rows: exact, and with the engine's rounding."""

    exact: np.ndarray
    rounded: np.ndarray


class Result(NamedTuple):
    """A recorded tensor recomputed for a block: `noise` [token] or [head, query] is its error to allow."""

    key: Key
    span: Span
    values: np.ndarray
    noise: np.ndarray


Look = Callable[[Result], Any]


class Recompute:
    """The pass.  `keys` are the tensors that can be judged, `lost` says of others why they can't."""

    def __init__(self, trace: Trace, model: Model, targets: Collection[Key] | None = None):
        self.trace, self.model, self.source = trace, model, Source(trace)
        self.graph = graph_of(trace, model)
        self.allowance = Allowance(trace, model)
        self.lost: dict[Key, str] = {}
        self._fitted = Fitted(trace, self.graph)
        self.misfits = self._fitted.misfits
        self._turns = sorted({op.params["original"] for op in self.graph.ops if op.params.get("original")})
        self._tokens = trace.recorded[: self._count()]
        if not len(self._tokens):
            raise UserError(f"{trace.path} holds no finished step: nothing to replay")
        lookups = [op.weights[0] for op in self.graph.ops if op.kind == "embedding" and TOKENS in op.inputs]
        vocabulary = min(model.shape(name)[0] for name in lookups)
        if trace.tokens.max() >= vocabulary:
            raise UserError(f"{trace.path} has token id {trace.tokens.max()}, the model {vocabulary} tokens")
        known = [key for key in self.graph.outputs if key in trace.tensors]
        readable = self._fitted.whole - self._fitted.clipped
        self._complete = {key for key in known if key in readable and self._is_complete(key)}
        wanted = [key for key in known if key not in self.misfits]
        self.keys = [key for key in wanted if targets is None or key in targets]
        self._needed = self._find_needed()

    # ---- what is there

    def _count(self) -> int:
        ends = [step.kv_len for step in self.source.steps]
        return int(np.searchsorted(self.trace.recorded, max(ends, default=0)))

    def _is_complete(self, key: Key) -> bool:
        """Whether ops can read every row of the recorded tensor."""
        steps = [step.index for step in self.source.steps if len(self.trace.rows(step.index))]
        return self.trace.tensors[key].joined and bool(self.source.has(key)[steps].all())

    def _find_needed(self) -> set[Key]:
        """The ops, by their main output, that lead to what is to be judged."""
        needed: set[Key] = set()
        read: set[Key] = set()
        for op in reversed(self.graph.ops):
            if op.out in read or any(key in self.keys for key in op.outputs):
                needed.add(op.out)
                read |= {key for key in op.inputs if key not in self._complete}
        return needed

    def between(self, key: Key) -> list[Op]:
        """The ops that are replayed as one to recompute `key`, in execution order."""
        found: set[Key] = set()
        waiting = [self.graph.producer(key)]
        while waiting:
            op = waiting.pop()
            if op is not None and op.out not in found:
                found.add(op.out)
                waiting += [self.graph.producer(name) for name in op.inputs if name not in self._complete]
        return [op for op in self.graph.ops if op.out in found]

    def reads(self, ops: Sequence[Op]) -> list[Key]:
        """The recorded tensors that such ops begin with."""
        return list(dict.fromkeys(key for op in ops for key in op.inputs if key in self._complete))

    def spans(self) -> list[Span]:
        """The rows in blocks."""
        found, run = [], []
        for step in self.source.steps:
            if step.phase == "decode":
                run.append(step)
                continue
            found += [*self._decoded(run), *self._prefilled(step)]
            run = []
        return [*found, *self._decoded(run)]

    def _prefilled(self, step: Step) -> Iterator[Span]:
        first, last = (int(np.searchsorted(self._tokens, at)) for at in (step.start, step.kv_len))
        for start in range(first, last, ROWS):
            stop = min(start + ROWS, last)
            yield Span(slice(start, stop), np.full(stop - start, step.index), False)

    def _decoded(self, run: Sequence[Step]) -> Iterator[Span]:
        kept = [step for step in run if len(self.trace.rows(step.index))]
        cuts = [sum(step.start < turn for step in kept) for turn in self._turns]
        edges = sorted({*range(0, len(kept), ROWS), *cuts, len(kept)})
        for at, end in pairwise(edges):
            part = kept[at:end]
            first = int(np.searchsorted(self._tokens, part[0].start))
            steps = np.array([step.index for step in part])
            yield Span(slice(first, first + len(part)), steps, True)

    # ---- the pass

    def run(self, look: Look, workers: int | None = None) -> Iterator[Any]:
        """Call `look` with each recomputed block of each tensor, on threads; yields what it returns."""
        passed: dict[Key, Passed] = {}
        spans = self.spans()
        last_use = {key: op.out for op in self.graph.ops if op.out in self._needed for key in op.inputs}
        with one_thread_each(), ThreadPoolExecutor(workers or os.cpu_count()) as pool:
            for op in self.graph.ops:
                if op.out not in self._needed:
                    continue
                reason = self._obstacle(op, passed)
                if reason:
                    self.lost |= dict.fromkeys((key for key in op.outputs if key in self.keys), reason)
                    continue
                kept = self._room(op) if op.out in last_use and op.out not in self._complete else None
                yield from self._op(op, spans, passed, kept, look, pool)
                if kept is not None:
                    passed[op.out] = kept
                for key in op.inputs:
                    if last_use[key] == op.out:
                        passed.pop(key, None)

    def _obstacle(self, op: Op, passed: Mapping[Key, Passed]) -> str:
        for index, key in enumerate(op.inputs):
            if key == TOKENS and self.trace.tokens.min() < 0:
                return "the token ids are not known: import with --tokens"
            if key not in (TOKENS, POSITIONS) and key not in self._complete and key not in passed:
                return f"{key} was not recorded, nor what it follows from"
            if index in op.history and not np.array_equal(self._tokens, np.arange(len(self._tokens))):
                return f"{key} was recorded for some tokens only"
        return ""

    def _room(self, op: Op) -> Passed:
        spec = self._fitted.specs[op.out]
        shape, dtype = spec.shape(len(self._tokens), 0), numpy_dtype(spec.dtype)
        return Passed(np.empty(shape, dtype), np.empty(shape, dtype))

    def _op(
        self,
        op: Op,
        spans: Sequence[Span],
        passed: Mapping[Key, Passed],
        kept: Passed | None,
        look: Look,
        pool: ThreadPoolExecutor,
    ) -> Iterator[Any]:
        weights = [self._weight(op, name) for name in op.weights]
        if op.kind == "linear":
            self.allowance.prepare(op, weights)
        alone = kept is None and not any(key in passed for key in op.inputs)

        def work(span: Span) -> list[Any]:
            inputs = self._inputs(op, span, passed, "exact")
            want, one = self._want(op, span), self._in_step(op, span)
            made = _compute(one, inputs, weights, want)
            targets = {key: made[key] for key in self._judged(op, span)}
            if alone:
                noise = self.allowance.of(op, inputs, weights, made) if targets else {}
            else:
                recorded = [key in self._complete for key in op.inputs]
                off = self.allowance.rounded(op, self._inputs(op, span, passed, "rounded"), recorded)
                again = _compute(one, off, weights, want)
                if op.kind == "top_k":
                    again = {op.out: self.allowance.swapped(op, inputs[0], off[0], made[op.out])}
                noise = {key: self._apart(key, targets[key], again[key]) for key in targets}
                if kept is not None:
                    self._keep(kept, op.out, span.rows, made[op.out], again[op.out])
            return [look(Result(key, span, array, noise[key])) for key, array in targets.items()]

        for found in pool.map(work, spans):
            yield from found

    def _keep(self, kept: Passed, key: Key, rows: slice, exact: np.ndarray, rounded: np.ndarray) -> None:
        """What is passed on; of a tensor that was recorded only what its file could not hold."""
        if key in self._fitted.clipped and self._is_complete(key):
            recorded = self.recorded(key, rows).astype(np.float64)
            lost = np.isinf(recorded)
            exact = self._fitted.unclipped(key, recorded, exact)
            rounded = np.where(lost & np.isfinite(exact), rounded, self.allowance.moved(key, recorded))
        kept.exact[rows], kept.rounded[rows] = exact, rounded

    def _in_step(self, op: Op, span: Span) -> Op:
        """LongRoPE goes by the last position of the step, which may lie in a later block."""
        if "original" not in op.params:
            return op
        last = self.trace.steps[int(span.step[-1])].kv_len - 1
        return op.with_params(original=0 if last >= op.params["original"] else last + 1)

    def _apart(self, key: Key, exact: np.ndarray, rounded: np.ndarray) -> np.ndarray:
        """The error to allow in each row, told from one run with rounding: the median row's, and its own."""
        with np.errstate(all="ignore"):
            apart = length(key, rounded - exact)
        return SLACK * self.allowance.stored(key, exact, np.hypot(apart, np.median(apart)))

    def _weight(self, op: Op, name: str) -> Any:
        return _Table(self.model, name) if op.kind == "embedding" else self.model.weight(name, np.float64)

    def _want(self, op: Op, span: Span) -> set[str]:
        if len(op.outputs) == 1:
            return set()
        return {key.name for key in self._judged(op, span) if key != op.out}

    def _judged(self, op: Op, span: Span) -> list[Key]:
        """The outputs of an op that were recorded for some of the rows."""
        return [key for key in op.outputs if key in self.keys and self.source.has(key)[span.step].any()]

    # ---- reading

    def _inputs(self, op: Op, span: Span, passed: Mapping[Key, Passed], which: str) -> list[np.ndarray]:
        found = []
        for index, key in enumerate(op.inputs):
            rows = slice(0, span.rows.stop) if index in op.history else span.rows
            if key == TOKENS:
                found.append(self.trace.tokens[self._tokens[rows]])
            elif key == POSITIONS:
                found.append(self._tokens[rows])
            elif key in passed:
                found.append(getattr(passed[key], which)[rows])
            else:
                recorded = self.recorded(key, rows)
                found.append(recorded.astype(np.float64) if recorded.dtype.kind not in "iu" else recorded)
                give_back(recorded)
        return found

    def unclipped(self, key: Key, recorded: np.ndarray, computed: np.ndarray) -> np.ndarray:
        """What was recorded, with what is computed where the file could not hold it."""
        return self._fitted.unclipped(key, recorded, computed)

    def recorded(self, key: Key, rows: slice) -> np.ndarray:
        """Rows of a token-first tensor as recorded, shaped and ordered as the model has it."""
        return self._fitted.fit(key, self.source.joined(key)[rows])


class _Table:
    """An embedding table of which only the rows that are asked for are dequantised."""

    def __init__(self, model: Model, name: str):
        self._model, self._name, self.dtype = model, name, np.dtype(np.float64)

    def __len__(self) -> int:
        return self._model.shape(self._name)[0]

    def __getitem__(self, ids: np.ndarray) -> np.ndarray:
        return self._model.rows(self._name, ids, np.float64)


def _compute(op: Op, inputs: Sequence[Any], weights: Sequence[Any], want: set[str]) -> Arrays:
    params = {**op.params, "want": want} if len(op.outputs) > 1 else op.params
    with np.errstate(all="ignore"):
        result = op.compute()(*inputs, *weights, **params)
    if not isinstance(result, dict):
        return {op.out: result}
    return {op.out if name == "out" else Key(op.out.layer, name): array for name, array in result.items()}
