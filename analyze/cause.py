"""Root causes: what each does to an op, as one change that can be injected or tried as a hypothesis.

A cause is one file in `analyze/causes/` that subclasses Cause; defining the class registers it.  Its id is
the stable name that users see.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any, ClassVar

from ..tracer.errors import UserError
from ..tracer.graph import Compute, Graph, Op, Weights
from ..tracer.names import Key
from ..tracer.selection import parse_ranges

if TYPE_CHECKING:
    from .replay import Replay


class Cause:
    """One root cause.  Subclasses state `id`, `fix`, what it is in the docstring, and the change."""

    registry: ClassVar[dict[str, "Cause"]] = {}

    id: ClassVar[str] = ""
    fix: ClassVar[str] = ""
    default: ClassVar[float | None] = None  # the value of an injection that gives none; None takes no value

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        Cause.registry[cls.id] = cls()

    def applies(self, op: Op) -> bool:
        """Whether the fault can sit in `op`."""
        return False

    def change(self, op: Op, value: float | None, model: Weights) -> Op:
        """`op` with the fault in it."""
        raise ValueError(f"{self.id} is not a fault of an op")

    def candidates(self, op: Op, replay: "Replay", step: int, key: Key) -> Iterable[float | None]:
        """The values worth trying as a hypothesis on `op`; a fit of the recorded output where one exists."""
        return [self.default]

    def change_ids(self, ids: Sequence[int], metadata: Mapping[str, Any]) -> list[int]:
        """The token ids that an engine with this fault feeds the model."""
        return list(ids)


@cache
def causes() -> dict[str, Cause]:
    """Every cause by id."""
    package = import_module(".causes", __package__)
    for entry in sorted(iter_modules(package.__path__), key=lambda entry: entry.name):
        import_module(f".causes.{entry.name}", __package__)
    return Cause.registry


def reference() -> str:
    """docs/causes.md: what each cause is, how to mend it, and how to inject it."""
    lines = [
        "# The causes",
        "",
        "What `trace` can name, and what `--inject` can put into a run (`CAUSE[@WHERE][=VALUE]`; WHERE lists",
        "layers and tensors, as in `rope_pairing@3-5,k_rope`). This page is made from `analyze/causes/`.",
        "",
        "| cause | what it is | what to do | default value |",
        "|---|---|---|---|",
    ]
    for cause in causes().values():
        what = " ".join((cause.__doc__ or "").split())
        default = "" if cause.default is None else f"{cause.default:g}"
        lines.append(f"| `{cause.id}` | {what} | {cause.fix} | {default} |")
    return "\n".join(lines) + "\n"


def with_inputs(function: Callable[..., tuple]) -> Callable[[Compute], Compute]:
    """A wrap that passes an op's operands through `function` first."""

    def wrap(compute: Compute) -> Compute:
        return lambda *operands, **params: compute(*function(*operands), **params)

    return wrap


@dataclass(frozen=True)
class Injection:
    """`CAUSE[@WHERE][=VALUE]`: attn_scale=0.5, rope_pairing@3, norm_plus_one@attn_norm, dequant_layout@0-2,q.

    WHERE lists layers (numbers and ranges) and names of the tensors that the faulty op computes; without
    it, or without one of the two kinds, the fault is put wherever it fits.
    """

    cause: Cause
    layers: str | None = None
    tensors: tuple[str, ...] = ()
    value: float | None = None

    @classmethod
    def parse(cls, text: str) -> "Injection":
        head, equals, number = text.partition("=")
        name, _, where = head.partition("@")
        if name not in causes():
            raise UserError(f"--inject {name!r}: no such cause; there are {', '.join(causes())}")
        cause, value = causes()[name], causes()[name].default
        if equals:
            if value is None:
                raise UserError(f"--inject {name} takes no value")
            try:
                value = float(number)
            except ValueError:
                raise UserError(f"--inject {name}={number!r}: not a number") from None
        parts = [part.strip() for part in where.split(",") if part.strip()]
        layers = ",".join(part for part in parts if part[0].isdigit())
        return cls(cause, layers or None, tuple(part for part in parts if not part[0].isdigit()), value)

    def apply(self, graph: Graph) -> Graph:
        """The graph with the fault put in; UserError where it fits no op of the chosen places."""
        ranges = None if self.layers is None else parse_ranges(self.layers, "--inject layer")
        fits = [op for op in graph.ops if self.cause.applies(op) and self._inside(op, ranges)]
        if not fits and type(self.cause).change is not Cause.change:
            where = ", ".join(filter(None, (self.layers, *self.tensors)))
            raise UserError(
                f"--inject {self.cause.id} fits no operation of this model{where and ' at '}{where}"
            )
        chosen = {op.out for op in fits}
        return graph.replace(
            lambda op: self.cause.change(op, self.value, graph.model) if op.out in chosen else op
        )

    def _inside(self, op: Op, ranges: list[range] | None) -> bool:
        layer = op.out.layer
        in_layers = ranges is None or (layer is not None and any(layer in r for r in ranges))
        return in_layers and (not self.tensors or op.out.name in self.tensors)
