import numpy as np

from ..cause import Cause, with_inputs
from ..rotation import recorded_position


class RopeStaleTable(Cause):
    """The table of cosines and sines ends at position `value`: later tokens read its last row."""

    id = "rope_stale_table"
    fix = "size the table for the context in use, and bounds-check the position"
    default = 16.0
    fires = ("rope_stale_table", "rope_stale_table@1=9")
    quiet = ("rope_position=all+3", "rope_position=restart")

    def applies(self, op):
        return op.kind == "rope"

    def change(self, op, value, model):
        def clipped(x, positions, *weights):
            return (x, np.minimum(positions, int(value)), *weights)

        return op.wrapped(with_inputs(clipped))

    def candidates(self, case):
        return []

    def fit(self, case):
        """The position before the first row that is wrong; of a single row the one that it was turned by."""
        recorded, positions = case.recorded(), case.inputs[1]
        if recorded is None:
            return []
        if len(recorded) == 1:
            found = recorded_position(case, int(positions[0])) if positions[0] else None
            return [] if found is None else [float(found)]
        off = np.linalg.norm((recorded - case.right()).reshape(len(recorded), -1), axis=1)
        wrong = np.flatnonzero(off > 0.02 * off.max())
        return [float(positions[wrong[0]] - 1)] if len(wrong) and positions[wrong[0]] else []
