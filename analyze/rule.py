"""What every anomaly rule builds on: what it may look at, and how it tells what it found.

A rule is one file in `analyze/rules/` that subclasses Rule; defining the class registers it.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, ClassVar

import numpy as np

from ..tracer.architecture import build_graph
from ..tracer.errors import UserError
from ..tracer.gguf import Model
from ..tracer.graph import Graph
from ..tracer.names import Key
from ..tracer.trace import Trace
from .expected import Length, expected_length
from .partial import is_partial
from .tally import Entry, Place
from .walk import Block, usual


@dataclass(frozen=True)
class Hit:
    """One place where a rule's figure is off; the hits of one tensor make one finding."""

    tensor: str
    value: float
    expected: str
    message: str
    layer: int | None = None
    steps: Sequence[int] = ()
    severity: str = ""
    weight: float = 0.0  # how bad, to tell the worst of several
    detail: dict[str, Any] = field(default_factory=dict)


class Context:
    """What rules may look at: the trace, a healthy one to compare with, the model."""

    def __init__(self, trace: Trace, baseline: Trace | None = None, model: Model | None = None):
        self.trace, self.baseline, self.model = trace, baseline, model
        self._lengths: dict[Key, Length | None] = {}

    @cached_property
    def recorded(self) -> set[str]:
        """Names of the tensors of the trace that can be used as what they are called, and are whole."""
        whole = (item for item in self.trace.tensors.items() if not is_partial(item[1]))
        return {key.name for key, spec in whole if usual(spec)}

    @cached_property
    def graph(self) -> Graph | None:
        """The model's graph; None where `model_trouble` says why not."""
        if self.model is None or self._other_model():
            return None
        try:
            return build_graph(self.model)
        except UserError as error:
            self._graph_error = str(error)
            return None

    @property
    def model_trouble(self) -> str | None:
        """Why the weights cannot be used."""
        if self.model is None:
            return "needs --model"
        if self._other_model():
            return "the model is not the one that was recorded (its SHA-256 differs)"
        return None if self.graph else self._graph_error

    def _other_model(self) -> bool:
        known = self.trace.header.model_sha256
        return bool(known and self.model and known != self.model.sha256)

    @cached_property
    def has_sinks(self) -> bool:
        """Whether softmax has a share for no key at all: declared by the trace, or by the model's weights."""
        declared = any(spec.conventions.get("sinks") for spec in self.trace.tensors.values())
        by_name = self.trace.header.architecture.replace("_", "-") in ("gpt-oss", "gptoss")
        in_file = self.model is not None and any("attn_sinks" in name for name in self.model.names)
        return declared or by_name or in_file

    def length(self, key: Key) -> Length | None:
        """How long the weights make the head vectors of q, k, v, q_rope or k_rope; None for others."""
        if self.graph is None or self.model is None:
            return None
        if key not in self._lengths:
            self._lengths[key] = expected_length(self.graph, self.model, key)
        return self._lengths[key]

    def hparam(self, name: str, default: Any = None) -> Any:
        """A hyperparameter, such as attention.causal, from the trace or else from the model."""
        header = self.trace.header
        value = header.hyperparameters.get(f"{header.architecture}.{name}")
        if value is None and self.graph is not None and self.model is not None:
            value = self.model.hparam(name, None)
        return default if value is None else value


class Rule:
    """One sign of a fault.  Subclasses state `id`, `severity`, and in the docstring what it means.

    `needs` are the tensors that it judges by: each entry one name, or alternatives joined by `|`.  A rule
    is made anew for each trace; `judged` counts what it could judge, and `idle` says why that may be nothing.
    """

    registry: ClassVar[dict[str, type["Rule"]]] = {}

    id: ClassVar[str] = ""
    severity: ClassVar[str] = "error"
    needs: ClassVar[tuple[str, ...]] = ()
    needs_model: ClassVar[bool] = False
    needs_baseline: ClassVar[bool] = False
    idle: ClassVar[str] = "nothing in this trace to judge by"

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        Rule.registry[cls.id] = cls

    def __init__(self, context: Context):
        self.context = context
        self.judged = 0

    @property
    def baseline(self) -> Trace:
        """The healthy trace, for a rule that needs one."""
        assert self.context.baseline is not None
        return self.context.baseline

    @property
    def weights(self) -> tuple[Graph, Model]:
        """The model and its graph, for a rule that needs them."""
        assert self.context.graph is not None
        assert self.context.model is not None
        return self.context.graph, self.context.model

    def unable(self) -> str | None:
        """Why the rule cannot run on this trace; None where it can."""
        if self.needs_baseline and self.context.baseline is None:
            return "needs --baseline"
        if self.needs_model and self.context.model_trouble:
            return self.context.model_trouble
        for need in self.needs:
            names = need.split("|")
            if not self.context.recorded.intersection(names):
                known = [spec for key, spec in self.context.trace.tensors.items() if key.name in names]
                whole = " whole: a log shows some values" if any(map(is_partial, known)) else ""
                return f"{' or '.join(names)} not recorded{whole}"
        return None

    def see(self, block: Block) -> Iterable[Hit]:
        """Look at one block; blocks come in execution order."""
        return ()

    def conclude(self) -> Iterable[Hit]:
        """After the last block: what shows only in all of them together."""
        return ()

    def hit(
        self, block: Block, tensor: str, rows: np.ndarray, value: float, expected: str, message: str, **more
    ) -> Hit:
        """A hit in some rows (counted inside the block); `more` as in Hit."""
        steps, more = block.steps_of(rows), {"weight": float(value), **more}
        return Hit(tensor, float(value), expected, message, block.layer, steps, **more)

    def worst(
        self,
        block: Block,
        tensor: str,
        bad: np.ndarray,
        value: np.ndarray,
        expected: str,
        message: str,
        *,
        size: np.ndarray | None = None,
        **more,
    ) -> Iterator[Hit]:
        """A hit where `bad` [head, query] and `size` (default |value|) is largest; none where nothing is bad.

        `message` may name {value}, {rows} (how many are bad), {of}, {heads}, {head} and {token}.
        """
        if not bad.any():
            return
        ranked = np.where(bad, np.nan_to_num(np.abs(value if size is None else size), nan=np.inf), -1)
        head, row = np.unravel_index(np.argmax(ranked), ranked.shape)
        place = {"head": int(head), "token": int(block.rows[row])}
        said = message.format(
            value=value[head, row],
            rows=np.count_nonzero(bad),
            of=bad.size,
            heads=np.count_nonzero(bad.any(1)),
            **place,
        )
        rows, weight = np.flatnonzero(bad.any(0)), float(ranked[head, row])
        yield self.hit(
            block, tensor, rows, value[head, row], expected, said, weight=weight, detail=place, **more
        )

    def over_phase(
        self, place: Place, entry: Entry, value: float, expected: str, message: str, **detail
    ) -> Hit:
        """A hit in a figure that was gathered over a phase; `weight` as in Hit, the rest is detail."""
        weight, steps = detail.pop("weight", value), sorted(entry.steps)
        return Hit(place.name, value, expected, message, place.layer, steps, weight=weight, detail=detail)


@cache
def rules() -> dict[str, type[Rule]]:
    """Every rule by id."""
    package = import_module(".rules", __package__)
    for entry in sorted(iter_modules(package.__path__), key=lambda entry: entry.name):
        import_module(f".rules.{entry.name}", __package__)
    return dict(sorted(Rule.registry.items()))


def figure(value: float) -> str:
    """A number with three digits, and no exponent where it can be helped: 0.0123, 8.52, 1,284."""
    return f"{value:,.0f}" if 100 <= abs(value) < 1e7 else f"{value:.3g}"
