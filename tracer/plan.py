"""Interpret a graph with shapes instead of arrays: what a run will produce, before it runs."""

from collections.abc import Iterable

from .format import ROW_AXES, Step, TensorSpec
from .graph import POSITIONS, TOKENS, Graph, Op
from .names import NAMES, Key

Shape = tuple[int, ...]


def shapes(graph: Graph, tokens: int, keys: int) -> dict[Key, Shape]:
    """The shape of every tensor of a step of `tokens` tokens that sees `keys` keys."""
    known: dict[Key, Shape] = {TOKENS: (tokens,), POSITIONS: (tokens,)}
    for op in graph.ops:
        result = op.kernel.shape(*_operands(graph, op, known, keys), **op.params)
        if isinstance(result, dict):
            known |= {Key(op.out.layer, name): shape for name, shape in result.items() if name != "out"}
            result = result["out"]
        known[op.out] = result
    return known


def _operands(graph: Graph, op: Op, known: dict[Key, Shape], keys: int) -> list[Shape]:
    inputs = [
        (keys, *known[key][1:]) if index in op.history else known[key] for index, key in enumerate(op.inputs)
    ]
    return inputs + [graph.model.shape(name) for name in op.weights]


def flops(graph: Graph, tokens: int, keys: int) -> int:
    """Floating-point operations of the matrix products of a step."""
    known = shapes(graph, tokens, keys)
    counted = (op for op in graph.ops if hasattr(op.kernel, "flops"))
    return sum(op.kernel.flops(*_operands(graph, op, known, keys), **op.params) for op in counted)


def tensor_specs(graph: Graph, keys: Iterable[Key], dtype: str) -> list[TensorSpec]:
    """How the tensors `keys` are declared in a trace, in execution order."""
    chosen, unit = set(keys), shapes(graph, 1, 1)
    specs = []
    for op in graph.ops:
        for key in op.outputs:
            if key in chosen:
                axes = NAMES[key.name].axes
                fixed = zip(axes, unit[key], strict=True)
                sizes = {axis: size for axis, size in fixed if axis not in (*ROW_AXES, "key")}
                if "tile" in sizes:
                    sizes["tile"] = op.params.get("tile", op.kernel.TILE)
                conventions = {name: op.params[name] for name in CONVENTIONS if name in op.params}
                inputs = tuple(name for name in op.inputs if name not in (TOKENS, POSITIONS))
                kept = NAMES[key.name].dtype or dtype
                specs.append(TensorSpec(key, axes, sizes, kept, op.kind, inputs, "", conventions))
    return specs


CONVENTIONS = [
    "pairing",
    "scale",
    "softcap",
    "window",
    "causal",
    "softmax",
    "eps",
    "base",
    "dims",
    "magnitude",
]


def trace_bytes(specs: Iterable[TensorSpec], steps: Iterable[Step], itemsize: int) -> int:
    """Bytes of tensor data that a run writes when every token is recorded."""
    total, specs = 0, list(specs)
    for step in steps:
        for spec in specs:
            size = itemsize
            for extent in spec.shape(step.n_tokens, step.kv_len):
                size *= extent
            total += size
    return total
