"""An architecture as data: the list of ops that run, plan, replay and the causes all interpret.

An op names its output, its kernel (`kernels/<kind>.py`), its inputs, its weights and its parameters.
Because it is data, a fault or a hypothesis is the same graph with one op changed.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any, Protocol

from .names import ATTENTION_EXTRAS, Key

TOKENS = Key(None, "tokens")
POSITIONS = Key(None, "positions")

Compute = Callable[..., Any]


class Weights(Protocol):
    """What a graph needs to know of a model file (`gguf.Model` is one)."""

    arch: str

    def __contains__(self, name: str) -> bool: ...
    def shape(self, name: str) -> tuple[int, ...]: ...
    def hparam(self, key: str, default: Any = ...) -> Any: ...


@dataclass(frozen=True)
class Op:
    """One step of the computation: `out = kind(*inputs, *weights, **params)`."""

    out: Key
    kind: str
    inputs: tuple[Key, ...]
    weights: tuple[str, ...] = ()
    params: Mapping[str, Any] = field(default_factory=dict)
    wraps: tuple[Callable[[Compute], Compute], ...] = ()

    @property
    def kernel(self) -> ModuleType:
        return kernel(self.kind)

    @property
    def outputs(self) -> tuple[Key, ...]:
        """Every tensor that the op can give, in the order in which it is computed."""
        extras = getattr(self.kernel, "EXTRAS", ())
        ordered = (name for name in ATTENTION_EXTRAS if name in extras)
        return (*(Key(self.out.layer, name) for name in ordered), self.out)

    @property
    def history(self) -> frozenset[int]:
        """Indices of the inputs that span all tokens so far (the KV cache)."""
        return frozenset(getattr(self.kernel, "HISTORY", ()))

    def compute(self, backend: str = "cpu") -> Compute:
        """The kernel function for `backend`, inside whatever wraps a fault has put around it."""
        function: Compute = getattr(self.kernel, backend)
        for wrap in self.wraps:
            function = wrap(function)
        return function

    def with_params(self, **params: Any) -> "Op":
        return replace(self, params={**self.params, **params})

    def wrapped(self, wrap: Callable[[Compute], Compute]) -> "Op":
        """The op with `wrap(compute)` in place of its computation."""
        return replace(self, wraps=(*self.wraps, wrap))


@cache
def kernel(kind: str) -> ModuleType:
    return import_module(f"...kernels.{kind}", __name__)


class Graph:
    """The ops of one model in execution order, built by an architecture file."""

    def __init__(self, model: Weights):
        self.model = model
        self.ops: list[Op] = []
        self._producers: dict[Key, Op] = {}
        self._layer: int | None = None

    def layers(self, count: int) -> Iterator[int]:
        """Iterate over the layers; ops built inside the loop belong to the layer."""
        for self._layer in range(count):
            yield self._layer
        self._layer = None

    def op(self, out: str, kind: str, *inputs: Key, w: tuple[str, ...] = (), **params: Any) -> Key:
        """Append `out = kind(*inputs, *w, **params)` and return out's key.

        Weight names are relative to the layer (`attn_q.weight` is `blk.3.attn_q.weight` there) unless they
        start with `/`; one that ends in `?` is left out when the model has none.  So is a parameter that is
        None.
        """
        names = tuple(name for name in map(self._weight_name, w) if name is not None)
        given = {name: value for name, value in params.items() if value is not None}
        key = Key(self._layer, out)
        self._append(Op(key, kind, inputs, names, given))
        return key

    @property
    def head(self) -> str:
        """The weight of the output head: the embedding's own where the file has no other."""
        return "output.weight" if "output.weight" in self.model else "token_embd.weight"

    def _append(self, op: Op) -> None:
        self.ops.append(op)
        self._producers |= dict.fromkeys(op.outputs, op)

    def _weight_name(self, name: str) -> str | None:
        absolute = self._layer is None or name.startswith("/")
        full = ("" if absolute else f"blk.{self._layer}.") + name.removeprefix("/").removesuffix("?")
        return None if name.endswith("?") and full not in self.model else full

    def replace(self, change: Callable[[Op], Op]) -> "Graph":
        """A copy with every op passed through `change`."""
        graph = Graph(self.model)
        for op in self.ops:
            graph._append(change(op))
        return graph

    def producer(self, key: Key) -> Op | None:
        """The op that computes `key`; None for tokens, positions and unknown names."""
        return self._producers.get(key)

    @property
    def outputs(self) -> list[Key]:
        """Every tensor of the graph in execution order."""
        return [output for op in self.ops for output in op.outputs]
