import numpy as np

from ...tracer.architecture import build_graph
from ...tracer.names import Key
from ..cause import Cause, with_inputs


class Kshift(Cause):
    """Keys of earlier steps were rotated again (or not, after a context shift): by `value` positions.

    llama.cpp#3825, llama.cpp#14742.
    """

    id = "kshift"
    fix = "after a context shift rotate each cached key by its own move, once, in every stream"
    default = 1.0
    tell = "the absolute position of every slot of the cache"
    fires = ("kshift", "kshift@1=-3")
    quiet = ("kv_slot", "rope_position")

    def applies(self, op):
        return op.kind == "attention"

    def change(self, op, value, model):
        rope = build_graph(model).producer(Key(op.out.layer, "k_rope"))
        if rope is None or rope.kind != "rope" or not value:
            return op

        def shifted(q, k, v, *rest):
            cached = len(k) - len(q)
            if cached:
                k = k.copy()
                turns = np.full(cached, int(value))
                factors = [model.weight(name, k.dtype) for name in rope.weights]
                k[:cached] = rope.compute()(k[:cached], turns, *factors, **rope.params)
            return (q, k, v, *rest)

        return op.wrapped(with_inputs(shifted))

    def candidates(self, case):
        if len(case.inputs[1]) == len(case.inputs[0]):
            return []
        return [float(shift) for shift in (1, -1, 2, -2, 3, -3, 4, -4)]
