import numpy as np

from ...tracer.architecture import build_graph
from ...tracer.names import Key
from ..cause import Cause, with_inputs


class RopeOnV(Cause):
    """V is rotated, too, as it goes into the cache.

    One function for all three of a fused projection, or a cache written through K's path.
    """

    id = "rope_on_v"
    fix = "rotate Q and K only"
    fires = ("rope_on_v", "rope_on_v@1")
    quiet = ("kv_slot=v1", "stride=v")

    def applies(self, op):
        return op.kind == "attention"

    def change(self, op, value, model):
        rope = build_graph(model).producer(Key(op.out.layer, "k_rope"))
        if rope is None or rope.kind != "rope":
            return op

        def rotated(q, k, v, *rest):
            factors = [model.weight(name, v.dtype) for name in rope.weights]
            return (q, k, rope.compute()(v, np.arange(len(v)), *factors, **rope.params), *rest)

        return op.wrapped(with_inputs(rotated))
