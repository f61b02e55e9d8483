import numpy as np

from ..cause import Cause, with_inputs


class KvSlot(Cause):
    """Keys and values are read from the wrong cache slot: column j holds token j - value."""

    id = "kv_slot"
    fix = "write and read the cache at the token's own slot; check the write offset of each step"
    default = 1.0

    def applies(self, op):
        return op.kind == "attention"

    def change(self, op, value, model):
        def shift(q, k, v, *sinks):
            return q, np.roll(k, int(value), axis=0), np.roll(v, int(value), axis=0), *sinks

        return op.wrapped(with_inputs(shift))

    def candidates(self, op, replay, step, key):
        return [1.0, -1.0, 2.0, -2.0]
