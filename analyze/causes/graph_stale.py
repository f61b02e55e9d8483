import numpy as np

from ...tracer.names import Key
from ..cause import Cause

ONE_RESULT = ("linear", "rms_norm", "rope", "add", "glu", "embedding")


class GraphStale(Cause):
    """Decode steps repeat an earlier step's values: a captured graph reads a stale pointer or length.

    ik_llama.cpp#2136, aprender#2030: the first decode steps are right.
    """

    id = "graph_stale"
    fix = "capture the graph with buffers that stay in place, and update every argument before each replay"
    tell = "the engine run with its graphs off, and the buffers' addresses"
    fires = ("graph_stale@1,ffn_out", "graph_stale@0,q_rope")
    quiet = ("rope_position", "kv_stale=past")

    def applies(self, op):
        return op.kind in ONE_RESULT

    def change(self, op, value, model):
        kept = [] if value is None else [value]

        def wrap(compute):
            def stale(x, *operands, **params):
                out = compute(x, *operands, **params)
                if len(x) > 1:
                    return out
                kept.append(out)
                return np.asarray(kept[0], out.dtype).reshape(out.shape)

            return stale

        return op.wrapped(wrap)

    def candidates(self, case):
        """The steps before, as recorded or as they should be."""
        key = Key(case.op.out.layer, case.op.out.name)
        if len(case.inputs[0]) > 1:
            return []
        return [case.value(key, step)[-1:] for step in (case.step - 1, case.step - 2) if step >= 0]

    def says(self, value):
        return ""
