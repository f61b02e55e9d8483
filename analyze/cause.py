"""Root causes: what each does to an op, as one change that can be injected or tried as a hypothesis.

A cause is one file in `analyze/causes/` that subclasses Cause; defining the class registers it.  Its id is
the stable name that users see.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any, ClassVar

from ..tracer.errors import UserError
from ..tracer.graph import Compute, Graph, Op, Weights
from ..tracer.selection import parse_ranges

if TYPE_CHECKING:
    from .segment import Case

Value = Any  # a number, a choice by name, an array that was fitted; None for causes without a parameter


class Cause:
    """One root cause.  Subclasses state `id`, `fix`, what it is in the docstring, and the change.

    The first line of the docstring says what is wrong; what follows, where it was met.
    """

    registry: ClassVar[dict[str, "Cause"]] = {}

    id: ClassVar[str] = ""
    fix: ClassVar[str] = ""
    default: ClassVar[float | str | None] = None  # what an injection without a value takes; None: none
    choices: ClassVar[tuple[str, ...]] = ()  # the values that have names
    form: ClassVar[str] = ""  # a pattern that other values have
    tell: ClassVar[str] = ""  # what to record to tell it from a cause that explains as much

    # what a hypothesis needs besides
    freedom: ClassVar[int] = 0  # how much it can adapt to: of two that explain the same, the stiffer is meant
    continuous: ClassVar[bool] = False  # the best of its values is refined

    # its own tests: injections that its id must be named for, others that it must not be, and what their
    # small model must have (see tests/analyze/causes)
    fires: ClassVar[tuple[str, ...]] = ()
    quiet: ClassVar[tuple[str, ...]] = ()
    needs: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        Cause.registry[cls.id] = cls()

    def applies(self, op: Op) -> bool:
        """Whether the fault can sit in `op`."""
        return False

    def change(self, op: Op, value: Value, model: Weights) -> Op:
        """`op` with the fault in it; `op` itself where the fault would change nothing."""
        raise ValueError(f"{self.id} is not a fault of an op")

    def candidates(self, case: "Case") -> Iterable[Value]:
        """The values worth trying as a hypothesis: the usual ones."""
        return self.choices or (self.default,)

    def fit(self, case: "Case") -> Iterable[Value]:
        """Values computed from what was recorded of the op, where it was."""
        return ()

    def says(self, value: Value) -> str:
        """The value in words, as in `rope_theta with the value 500000`."""
        if value is None:
            return ""
        return f" with the value {value:.6g}" if isinstance(value, (int, float)) else f" ({value})"

    def change_ids(self, ids: Sequence[int], metadata: Mapping[str, Any]) -> list[int]:
        """The token ids that an engine with this fault feeds the model."""
        return list(ids)

    @property
    def what(self) -> str:
        """The first sentence of the docstring."""
        return " ".join((self.__doc__ or "").split("\n\n")[0].split())

    @property
    def met(self) -> str:
        """What the docstring says besides: where the fault was met, how it shows."""
        return " ".join(" ".join((self.__doc__ or "").split("\n\n")[1:]).split())


@cache
def causes() -> dict[str, Cause]:
    """Every cause by id."""
    package = import_module(".causes", __package__)
    for entry in sorted(iter_modules(package.__path__), key=lambda entry: entry.name):
        import_module(f".causes.{entry.name}", __package__)
    return dict(sorted(Cause.registry.items()))


def reference() -> str:
    """docs/causes.md: what each cause is, how to mend it, and how to inject it."""
    lines = [
        "# The causes",
        "",
        "What `trace` can name, and what `--inject` can put into a run (`CAUSE[@WHERE][=VALUE]`; WHERE lists",
        "layers and tensors, as in `rope_pairing@3-5,k_rope`). This page is made from `analyze/causes/`.",
        "",
        "| cause | what it is | what to do | values (the first is the default) |",
        "|---|---|---|---|",
    ]
    for cause in causes().values():
        named = " ".join(filter(None, (cause.what, cause.met)))
        values = ", ".join(cause.choices) or ("a number" if isinstance(cause.default, str) else "")
        if isinstance(cause.default, float):
            values = f"{cause.default:g}"
        elif cause.default and cause.default not in cause.choices:
            values = cause.default
        lines.append(f"| `{cause.id}` | {named} | {cause.fix} | {values} |")
    return "\n".join(lines) + "\n"


# ---- parts that changes are made of


def with_inputs(function: Callable[..., tuple]) -> Callable[[Compute], Compute]:
    """A wrap that passes an op's operands through `function` first."""

    def wrap(compute: Compute) -> Compute:
        return lambda *operands, **params: compute(*function(*operands), **params)

    return wrap


def with_weight(function: Callable[[Any], Any]) -> Callable[[Compute], Compute]:
    """A wrap that passes the weight of x and weight through `function` once, for all steps."""
    made: dict[str, Any] = {}

    def other(x: Any, weight: Any, *rest: Any) -> tuple:
        if weight.dtype.str not in made:
            made[weight.dtype.str] = function(weight)
        return (x, made[weight.dtype.str], *rest)

    return with_inputs(other)


def with_output(function: Callable[..., Any]) -> Callable[[Compute], Compute]:
    """A wrap that gives `function(output, *operands)` in place of an op's output."""

    def wrap(compute: Compute) -> Compute:
        return lambda *operands, **params: function(compute(*operands, **params), *operands)

    return wrap


# ---- --inject


@dataclass(frozen=True)
class Injection:
    """`CAUSE[@WHERE][=VALUE]`: attn_scale=0.5, rope_pairing@3, norm_plus_one@attn_norm, dequant_layout@0-2,q.

    WHERE lists layers (numbers and ranges) and names of the tensors that the faulty op computes; without
    it, or without one of the two kinds, the fault is put wherever it fits.
    """

    cause: Cause
    layers: str | None = None
    tensors: tuple[str, ...] = ()
    value: float | str | None = None

    @classmethod
    def parse(cls, text: str) -> "Injection":
        head, equals, given = text.partition("=")
        name, _, where = head.partition("@")
        if name not in causes():
            raise UserError(f"--inject {name!r}: no such cause; there are {', '.join(causes())}")
        cause = causes()[name]
        value = _value(cause, given) if equals else cause.default
        parts = [part.strip() for part in where.split(",") if part.strip()]
        layers = ",".join(part for part in parts if part[0].isdigit())
        return cls(cause, layers or None, tuple(part for part in parts if not part[0].isdigit()), value)

    def apply(self, graph: Graph) -> Graph:
        """The graph with the fault put in; UserError where it fits no op of the chosen places."""
        ranges = None if self.layers is None else parse_ranges(self.layers, "--inject layer")
        fits = [op for op in graph.ops if self.cause.applies(op) and self._inside(op, ranges)]
        made = {op.out: self.cause.change(op, self.value, graph.model) for op in fits}
        if all(made[op.out] is op for op in fits) and type(self.cause).change is not Cause.change:
            where = ", ".join(filter(None, (self.layers, *self.tensors)))
            raise UserError(
                f"--inject {self.cause.id} fits no operation of this model{where and ' at '}{where}"
            )
        return graph.replace(lambda op: made.get(op.out, op))

    def _inside(self, op: Op, ranges: list[range] | None) -> bool:
        layer = op.out.layer
        in_layers = ranges is None or (layer is not None and any(layer in r for r in ranges))
        return in_layers and (not self.tensors or op.out.name in self.tensors)


def _value(cause: Cause, given: str) -> float | str:
    """The value of an injection: a number, or a name where the cause has named values."""
    if cause.default is None:
        raise UserError(f"--inject {cause.id} takes no value")
    if isinstance(cause.default, str):
        if given in cause.choices or re.fullmatch(cause.form, given):
            return given
        known = f"one of {', '.join(cause.choices)}" if cause.choices else f"a value like {cause.default}"
        raise UserError(f"--inject {cause.id}={given!r}: give {known} (docs/causes.md)")
    try:
        return float(given)
    except ValueError:
        raise UserError(f"--inject {cause.id}={given!r}: not a number") from None
