"""PyTorch as an engine: transformers' own model, run eagerly, every intermediate in our names.

Forward hooks see projections, norms and the residual stream.  What goes on inside attention is seen by a
function in transformers' registry of attention implementations: the model's own eager attention computes
probs and attn, and q, k and scores are taken beside it.
"""

import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from functools import partial
from importlib import import_module
from importlib.metadata import version
from io import StringIO
from itertools import count
from math import prod
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ..axes import ROTATED, interleaved
from ..engine import declare, softmax_state
from ..errors import MissingExtra, ModelError, UserError
from ..format import Step, TensorSpec
from ..gguf import Model
from ..graph import Graph
from ..names import ATTENTION_EXTRAS, Key, execution_order
from ..run import Sink
from ..torch_taps import Keep, head_sizes, taps, watched

RUNS_GRAPH = False  # it does without ours, but for the names of ops
DTYPES = ("float32", "float16", "bfloat16")
# a GGUF of these has the two of a RoPE pair side by side
PERMUTED = ("llama", "mistral", "mixtral", "smollm3", "granite")
LOGITS = Key(None, "logits")
EAGER = {"attn_implementation": "eager", "experts_implementation": "eager"}


class Engine:
    """Implements `record.Engine` for what transformers loads from a GGUF or from a folder with safetensors.

    Weights are converted to `dtype`, which the CPU computes in.  Q and K come in the order of elements that
    a GGUF of the model has; `graph`, our own description of the model, may be missing.
    """

    def __init__(self, graph: Graph | None, model: Model | Path, *, dtype: str = "float32"):
        if dtype not in DTYPES:
            raise UserError(f"the torch engine computes in {', '.join(DTYPES)}, not {dtype}")
        torch = _import("torch")
        path = model.path if isinstance(model, Model) else model
        self._graph, self._model = graph, _load(path, getattr(torch, dtype))
        if isinstance(model, Model):
            _check_complete(model, self._model)
        self.name, self.compute_dtype, self.device = "torch", dtype, "cpu"
        self.version = f"torch {version('torch')}, transformers {version('transformers')}"
        self.settings = {"attention": "eager", "threads": torch.get_num_threads()}
        self._layout = _Layout(self._model.config)
        self._attentions = [
            m for m in self._model.modules() if hasattr(m, "layer_idx") and hasattr(m, "scaling")
        ]
        self._sizes = self._dry_run()

    def available(self) -> list[Key]:
        return sorted(self._sizes, key=execution_order)

    def specs(self, keys: Iterable[Key], storage: str) -> list[TensorSpec]:
        chosen = set(keys)
        sources = {tap.key: tap.source for tap in taps(self._model)} | {LOGITS: "lm_head"}
        return [
            declare(
                self._graph,
                key,
                self._sizes[key],
                storage,
                sources.get(key, "attention function"),
                self._conventions(key),
            )
            for key in self.available()
            if key in chosen
        ]

    def start(self, wanted: Collection[Key], max_tokens: int) -> "Session":
        return Session(self._model, self._layout, wanted)

    def _dry_run(self) -> dict[Key, tuple[int, ...]]:
        """Every tensor that a run shows, and the sizes of the axes that stay the same."""
        found: dict[Key, tuple[int, ...]] = {}

        def measure(key: Key, array: np.ndarray) -> None:
            found[key] = array.shape[:1] if key.name in ATTENTION_EXTRAS else array.shape[1:]

        tokens = self._layout.unambiguous_length
        Session(self._model, self._layout, None).step(
            Step(0, "prefill", 0, tokens), np.zeros(tokens, np.int64), measure
        )
        return found

    def _conventions(self, key: Key) -> dict[str, Any]:
        if key.name in ATTENTION_EXTRAS:
            attention = next(m for m in self._attentions if m.layer_idx == key.layer)
            caps = {"softcap": cap} if (cap := getattr(attention, "attn_logit_softcapping", None)) else {}
            derived = {"derived": True} if key.name in ("m", "l") else {}
            return {"scale": float(attention.scaling), **caps, **derived}
        if key.name in ROTATED:
            pairs = "interleaved" if self._layout.permuted else "half-split"
            return {"pairing": pairs, "computed_with": "half-split"}
        return {}


class Session:
    """A model in mid-run, with transformers' KV cache; `wanted` None hands out everything."""

    def __init__(self, model: Any, layout: "_Layout", wanted: Collection[Key] | None):
        self._model, self._layout, self._wanted = model, layout, wanted
        self._taps = [tap for tap in taps(model) if self._wants(tap.key)]
        # not the model's own kind of cache, which would drop the keys that left a sliding window
        self._cache = _import("transformers").DynamicCache()

    def step(self, step: Step, ids: np.ndarray, sink: Sink) -> np.ndarray:
        """Feed `ids` [token]; returns the logits [token, vocab]."""
        torch = _import("torch")

        def keep(key: Key, tensor: Any) -> None:
            if self._wants(key):
                sink(key, self._layout.array(key, tensor, step.n_tokens))

        with torch.inference_mode(), watched(self._taps, keep), self._attention_watched(keep):
            fed = torch.from_numpy(np.asarray(ids, np.int64))[None]
            output = self._model(fed, past_key_values=self._cache, use_cache=True)
        keep(LOGITS, output.logits)
        return self._layout.array(LOGITS, output.logits, step.n_tokens)

    def _wants(self, key: Key) -> bool:
        return self._wanted is None or key in self._wanted

    @contextmanager
    def _attention_watched(self, keep: Keep) -> Iterator[None]:
        """While inside, `keep` is called with what eager attention reads and computes."""
        registry = import_module("transformers.modeling_utils").ALL_ATTENTION_FUNCTIONS
        registry["eager"] = partial(self._attention, keep)  # stands in for each model's own function
        try:
            yield
        finally:
            registry.pop("eager")

    def _attention(
        self, keep: Keep, module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any
    ) -> Any:
        """transformers' `eager_attention_forward`; arrays [1, head, token, dim], k and v of all tokens."""
        layer, tokens = module.layer_idx, query.shape[2]
        if getattr(module, "use_rope", True) and hasattr(self._model.get_decoder(), "rotary_emb"):
            keep(Key(layer, "q_rope"), query.transpose(1, 2))
            keep(Key(layer, "k_rope"), key[:, :, -tokens:].transpose(1, 2))
        if any(self._wants(Key(layer, name)) for name in ("scores", "m", "l")):
            scores = _scores(query, key, mask, options)
            keep(Key(layer, "scores"), scores)
            sinks = _numpy(module.sinks) if hasattr(module, "sinks") else None
            for name, part in zip(("m", "l"), softmax_state(_numpy(scores[0]), sinks), strict=True):
                keep(Key(layer, name), part)
        compute = vars(sys.modules[type(module).__module__])["eager_attention_forward"]
        attn, probs = compute(module, query, key, value, mask, **options)
        keep(Key(layer, "probs"), probs)
        keep(Key(layer, "attn"), attn)
        return attn, probs


def _scores(query: Any, key: Any, mask: Any, options: Mapping[str, Any]) -> Any:
    """What softmax sees [1, head, query, key], by the operations of `eager_attention_forward`."""
    torch = _import("torch")
    keys = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    scores = query @ keys.transpose(2, 3) * options["scaling"]
    if cap := options.get("softcap"):
        scores = torch.tanh(scores / cap) * cap
    if mask is None:
        return scores
    # transformers masks with the lowest number of the dtype, not with -inf
    return (scores + mask).masked_fill(mask <= torch.finfo(mask.dtype).min / 2, -torch.inf)


class _Layout:
    """Turns torch tensors into arrays in our axes and in GGUF's order of elements."""

    def __init__(self, config: Any):
        *self.heads, self.head_dim = head_sizes(config)
        self.permuted = config.model_type in PERMUTED
        self._heads_first: set[str] = set()  # q_norm and k_norm of some models, told from their shape

    @property
    def unambiguous_length(self) -> int:
        """A number of tokens that cannot be taken for a number of heads."""
        return next(n for n in count(2) if n not in self.heads)

    def array(self, key: Key, value: Any, tokens: int) -> np.ndarray:
        """`value`, a tensor [1, ...] or an array without a batch axis, as the trace stores it."""
        if isinstance(value, np.ndarray):
            return value
        if key.name == "expert_ids":
            return value.int().numpy()
        array = _numpy(value if value.ndim == 2 else value[0])  # experts see tokens without a batch axis
        if key.name not in (*ROTATED, "v"):
            return array
        if array.ndim == 2:
            array = array.reshape(tokens, -1, self.head_dim)
        elif len(array) != tokens:
            self._heads_first.add(key.name)
        if key.name in self._heads_first:
            array = array.swapaxes(0, 1)
        return interleaved(array) if self.permuted and key.name in ROTATED else array


def _numpy(tensor: Any) -> np.ndarray:
    """NumPy has no bfloat16: all come as float32, which holds the 16-bit types exactly."""
    return tensor.float().numpy()


def _import(package: str) -> ModuleType:
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        raise MissingExtra(package, "torch") from error


def _load(path: Path, dtype: Any) -> Any:
    """The model at `path` with eager attention and experts; nothing is fetched, and no pickle is opened."""
    transformers = _import("transformers")
    place: dict[str, Any] = {"use_safetensors": True}
    if path.is_file():
        _import("accelerate")  # transformers asks for it where it loads a GGUF
        place = {"gguf_file": path.name}
    folder = path.parent if path.is_file() else path
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(transformers.logging.CRITICAL)
    try:
        with redirect_stderr(StringIO()):  # progress bars that have no switch
            model = transformers.AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, local_files_only=True, **EAGER, **place
            )
    except (OSError, ValueError, KeyError, TypeError, NotImplementedError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"transformers cannot load {path}: {reason}") from error
    finally:
        transformers.logging.set_verbosity(verbosity)
    return model.eval()


def _check_complete(file: Model, loaded: Any) -> None:
    """ModelError where transformers left weights of the file out, which it does without a word."""
    stored = sum(prod(file.shape(name)) for name in file.names)
    used = sum(parameter.numel() for parameter in loaded.parameters())
    if stored != used:
        raise ModelError(
            f"transformers uses {used:,} weights of the {stored:,} in {file.path}: "
            f"its {file.arch} is another model (biases? RoPE factors? tied weights?)"
        )
