"""Faults put into a graph by tests, and which operations `verify` must blame."""

from collections.abc import Callable

from tensortrace.analyze.cause import Injection
from tensortrace.analyze.verify import Verification
from tensortrace.tracer.graph import Graph
from tensortrace.tracer.names import Key


def inject(*faults: str) -> Callable[[Graph], Graph]:
    def change(graph: Graph) -> Graph:
        for fault in faults:
            graph = Injection.parse(fault).apply(graph)
        return graph

    return change


def blamed(found: Verification) -> set[Key]:
    """The ops, by their main output, among which the first fault is said to be."""
    return {op.out for op in found.recompute.between(found.wrong[0][0])}


def faulty_ops(found: Verification, fault: str) -> set[Key]:
    right = found.recompute.graph
    pairs = zip(right.ops, inject(fault)(right).ops, strict=True)
    return {ours.out for ours, theirs in pairs if ours != theirs}
