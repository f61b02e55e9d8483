"""llama.cpp as an engine, through llama-cpp-python: graph nodes exactly as ggml computed them.

`llama_context_params.cb_eval` shows each node twice: before it runs, when we say whether we want it, and
after.  A wanted node splits the graph, so that only the tensors asked for cost time.  Which node is which of
our tensors is told from a dry run (`ggml.resolve`); in later runs the nodes come in the same order.
"""

import ctypes
import os
import re
import weakref
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import cache
from importlib import import_module
from importlib.metadata import version
from math import prod
from types import ModuleType
from typing import Any

import numpy as np
from gguf.constants import GGMLQuantizationType as Kind

from ..engine import declare, softmax_state
from ..errors import MissingExtra, ModelError, UserError
from ..format import Step, TensorSpec
from ..ggml import Capture, Ggml, Node, Tensor, activations, read_nodes, resolve
from ..gguf import Model
from ..graph import Graph
from ..names import Key, execution_order
from ..run import Sink

RUNS_GRAPH = False  # it does without ours, but for the names of ops
OLDEST = (0, 3, 36)  # llama-cpp-python before has other context parameters
KV_TYPES = {kind.name.lower(): kind for kind in (Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q5_1)}
KV_TYPES |= {kind.name.lower(): kind for kind in (Kind.Q5_0, Kind.Q4_1, Kind.Q4_0, Kind.IQ4_NL)}

_ERROR_LEVEL = 4  # GGML_LOG_LEVEL_ERROR
_errors: deque[str] = deque(maxlen=4)  # what llama.cpp logged as errors last


class Engine:
    """Implements `record.Engine` for whatever llama.cpp runs; our own graph of the model may be missing.

    `flash` uses flash attention, which has no scores, m, l and probs; `kv` is the type of the KV cache;
    `threads` defaults to the CPUs that this process may use.  The logits of every token are asked for:
    otherwise llama.cpp leaves rows of the last layer out.
    """

    def __init__(
        self,
        graph: Graph | None,
        model: Model,
        *,
        dtype: str = "float32",
        flash: bool = False,
        kv: str = "f32",
        threads: int | None = None,
    ):
        if dtype != "float32":
            raise UserError(f"llama.cpp computes in float32 with the weights as stored, not in {dtype}")
        if kv not in KV_TYPES:
            raise UserError(f"llama.cpp's KV cache is of type {', '.join(KV_TYPES)}, not {kv}")
        api, self._ggml = _import()
        threads = threads or _cpus()
        self._graph, self._llama = graph, _Llama(api, model, flash=flash, kv=KV_TYPES[kv], threads=threads)
        self.name, self.compute_dtype, self.device = "llama.cpp", dtype, "cpu"
        self.version = f"llama-cpp-python {version('llama-cpp-python')}, ggml {self._ggml.version}"
        self.settings = {"activation": activations(model), "flash": flash, "kv": kv, "threads": threads}
        # some architectures have another graph for a single token
        self._plans = {"prefill": self._dry_run(2), "decode": self._dry_run(1)}

    def available(self) -> list[Key]:
        return sorted(self._plans["prefill"].keys() & self._plans["decode"].keys(), key=execution_order)

    def specs(self, keys: Iterable[Key], storage: str) -> list[TensorSpec]:
        chosen, plan = set(keys), self._plans["prefill"]
        captures = [plan[key] for key in self.available() if key in chosen]
        return [declare(self._graph, c.key, c.sizes, storage, c.source, c.conventions) for c in captures]

    def start(self, wanted: Collection[Key], max_tokens: int) -> "Session":
        stops = {phase: _Stops([plan[key] for key in wanted]) for phase, plan in self._plans.items()}
        return Session(self._llama, _Eye(self._ggml, stops), max_tokens)

    def tokenize(self, text: str, *, add_special: bool = True) -> list[int]:
        """The ids that llama.cpp's own tokeniser gives `text`, special tokens in it recognised."""
        return self._llama.tokenize(text.encode(), add_special)

    def prompt_difference(self, text: str, ids: Sequence[int], *, add_special: bool = True) -> str:
        """Where llama.cpp's tokeniser makes other ids of `text`, in a sentence; empty where it agrees."""
        theirs, ours = self.tokenize(text, add_special=add_special), list(ids)
        if theirs == ours:
            return ""
        at = next((i for i, pair in enumerate(zip(theirs, ours)) if pair[0] != pair[1]), None)
        at = min(len(theirs), len(ours)) if at is None else at
        return (
            f"llama.cpp's tokeniser makes {len(theirs)} tokens of this prompt, ours {len(ours)}; "
            f"from token {at} on: {theirs[at : at + 3]} there, {ours[at : at + 3]} here"
        )

    def _dry_run(self, tokens: int) -> dict[Key, Capture]:
        addresses: list[int] = []

        def look(address: int, ask: bool, _: Any) -> bool:
            addresses.append(address)
            return False

        context = _Context(self._llama, tokens, look)
        context.decode(np.zeros(tokens, np.int32), 0)
        return resolve(read_nodes(self._ggml, addresses), tokens)


class Session:
    """A model in mid-run: a context with its KV cache, and the callback."""

    def __init__(self, llama: "_Llama", eye: "_Eye", max_tokens: int):
        self._eye, self._context = eye, _Context(llama, max_tokens, eye.look)

    def step(self, step: Step, ids: np.ndarray, sink: Sink) -> np.ndarray:
        """Feed `ids` [token]; the logits [token, vocab] are llama.cpp's memory, valid until the next step."""
        self._eye.begin(step, sink)
        logits = self._context.decode(ids, step.start)
        self._eye.raise_failed()
        return logits


class _Stops:
    """Where to stop in a graph, by the nodes' numbers, and what to take there."""

    def __init__(self, captures: Iterable[Capture]):
        self.captures: dict[int, list[Capture]] = defaultdict(list)
        self.nodes: dict[int, Node] = {}
        self.softmax_inputs: dict[int, float] = {}  # with the scale that the softmax will apply
        for capture in captures:
            self.captures[capture.node.index].append(capture)
            self.nodes[capture.node.index] = capture.node
            if capture.scores:
                self.nodes[capture.scores.index] = capture.scores
                self.softmax_inputs[capture.scores.index] = capture.node.number(0)


class _Eye:
    """llama.cpp's eval callback: takes the wanted tensors of a step while they are computed."""

    def __init__(self, ggml: Ggml, stops: dict[str, _Stops]):
        self._ggml, self._stops = ggml, stops
        self._error: BaseException | None = None

    def begin(self, step: Step, sink: Sink) -> None:
        self._step, self._sink, self._at = step, sink, -1
        self._now = self._stops["decode" if step.n_tokens == 1 else "prefill"]

    def raise_failed(self) -> None:
        """Raise what went wrong inside the callback."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def look(self, address: int, ask: bool, _: Any) -> bool:
        """Before a node runs (`ask`): is it wanted?  After: take it; True to go on."""
        if ask:
            self._at += 1
            return self._at in self._now.nodes
        try:
            self._take(address)
        except BaseException as error:  # ctypes would print and forget it; raise_failed raises it
            self._error = error
        return self._error is None

    def _take(self, address: int) -> None:
        expected, found = self._now.nodes[self._at].name, Tensor.from_address(address).name.decode()
        if found != expected:
            raise UserError(f"llama.cpp's graph changed during the run: {found} where {expected} was before")
        view, keys = self._ggml.view(address), self._step.kv_len
        if self._at in self._now.softmax_inputs:
            # float32 times a Python float stays float32, as in ggml; the mask is known at the softmax only
            self._scores = view[0, :, :, :keys] * self._now.softmax_inputs[self._at]
        taken = self._now.captures.get(self._at, ())
        softmax = self._softmax(address, {capture.key.name for capture in taken if capture.scores})
        for capture in taken:
            if capture.scores:
                values = softmax[capture.key.name]
            elif capture.key.name == "probs":
                values = np.array(view[0, :, :, :keys])
            else:
                rows = np.array(view, order="C").reshape(self._step.n_tokens, -1)
                values = rows[:, capture.first :][:, : prod(capture.sizes)].reshape(-1, *capture.sizes)
            self._sink(capture.key, values)

    def _softmax(self, address: int, names: Collection[str]) -> dict[str, np.ndarray]:
        """scores, m and l of the softmax node at `address`: `scale * kq + mask`, and what follows from it."""
        if not names:
            return {}
        keys = self._step.kv_len
        _, mask_at, sinks_at, *_ = Tensor.from_address(address).src
        mask = self._ggml.view(mask_at)[0, 0]
        sinks = np.array(self._ggml.view(sinks_at)).reshape(-1) if sinks_at else None
        if not np.isneginf(mask[:, keys:]).all():
            raise UserError("llama.cpp's KV cache is not in the order of positions: cannot cut its padding")
        scores = self._scores
        scores += mask[: self._step.n_tokens, :keys]
        derived = softmax_state(scores, sinks) if {"m", "l"} & set(names) else ()
        return {"scores": scores, **dict(zip(("m", "l"), derived))}


class _Llama:
    """A loaded model and how to run it."""

    def __init__(self, api: ModuleType, model: Model, *, flash: bool, kv: Kind, threads: int):
        self.api, self.path, self.flash, self.kv, self.threads = api, model.path, flash, kv, threads
        params = api.llama_model_default_params()
        params.n_gpu_layers = 0
        _errors.clear()
        self.model = api.llama_model_load_from_file(os.fsencode(model.path), params)
        if not self.model:
            raise ModelError(f"llama.cpp cannot load {model.path}: {_last_error()}")
        weakref.finalize(self, api.llama_model_free, self.model)
        if not api.llama_model_has_decoder(self.model) or api.llama_model_has_encoder(self.model):
            raise ModelError(f"{model.path}: {model.arch} is not a plain decoder, so it cannot be recorded")

    def tokenize(self, text: bytes, add_special: bool) -> list[int]:
        vocab, room = self.api.llama_model_get_vocab(self.model), len(text) + 8
        ids = (ctypes.c_int32 * room)()
        count = self.api.llama_tokenize(vocab, text, len(text), ids, room, add_special, True)
        if count < 0:
            raise ModelError(f"llama.cpp's tokeniser gives {-count} ids for {len(text)} bytes")
        return ids[:count]


class _Context:
    """A llama_context with room for `tokens` tokens, all of which may come in one batch."""

    def __init__(self, llama: _Llama, tokens: int, look: Callable[[int, bool, Any], Any]):
        api = llama.api
        params = api.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = tokens
        params.n_threads = params.n_threads_batch = llama.threads
        params.flash_attn_type = llama.flash
        params.type_k = params.type_v = llama.kv
        params.offload_kqv = params.op_offload = False
        params.swa_full = True  # keep every key, so that cells stay in the order of positions
        params.cb_eval = api.ggml_backend_sched_eval_callback(look)
        self._llama, self._callback = llama, params.cb_eval  # both have to outlive the context
        _errors.clear()
        self._context = api.llama_init_from_model(llama.model, params)
        if not self._context:
            raise ModelError(f"llama.cpp cannot run {llama.path} with {tokens} tokens: {_last_error()}")
        weakref.finalize(self, api.llama_free, self._context)

    def decode(self, ids: np.ndarray, start: int) -> np.ndarray:
        """Logits [token, vocab] of the tokens `ids` at positions from `start` on."""
        api, count = self._llama.api, len(ids)
        batch = api.llama_batch(n_tokens=count)  # each token belongs to sequence 0 where nothing is said
        batch.token = (ctypes.c_int32 * count)(*ids.tolist())
        batch.pos = (ctypes.c_int32 * count)(*range(start, start + count))
        batch.logits = (ctypes.c_int8 * count)(*[1] * count)
        status = api.llama_decode(self._context, batch)
        if status:
            raise ModelError(f"llama.cpp stopped with status {status} at token {start}: {_last_error()}")
        vocab = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self._llama.model))
        return np.ctypeslib.as_array(api.llama_get_logits(self._context), (count, vocab))


def _import() -> tuple[ModuleType, Ggml]:
    """llama-cpp-python's low-level functions and ggml's, silenced but for what `_last_error` tells."""
    if "OMP_WAIT_POLICY" not in os.environ:
        # ggml's threads meet at barriers by spinning, where cores are shared for many times the work itself
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    try:
        api = import_module("llama_cpp.llama_cpp")
    except ModuleNotFoundError as error:
        raise MissingExtra("llama-cpp-python", "llamacpp") from error
    except (OSError, RuntimeError) as error:
        raise UserError(f"llama-cpp-python is installed but its library does not load: {error}") from error
    found = version("llama-cpp-python")
    if tuple(map(int, re.findall(r"\d+", found)[:3])) < OLDEST:
        raise UserError(f"llama-cpp-python {found} is too old: pip install -U 'tensortrace[llamacpp]'")
    api.llama_log_set(_log_callback(api), None)
    libraries = import_module("llama_cpp._ctypes_extensions")
    folder = import_module("llama_cpp._ggml").libggml_base_path
    return api, Ggml(libraries.load_shared_library("ggml-base", folder))


@cache
def _log_callback(api: ModuleType) -> Any:
    """Kept for good: llama.cpp logs until the process ends."""

    def log(level: int, text: bytes, _: Any) -> None:
        if level == _ERROR_LEVEL:
            _errors.append(text.decode(errors="replace").strip())

    return api.llama_log_callback(log)


def _last_error() -> str:
    return "; ".join(_errors) or "it gave no reason"


def _cpus() -> int:
    """The CPUs that this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
