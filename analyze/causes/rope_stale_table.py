import numpy as np

from ..cause import Cause, with_inputs


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
        """The position before the first row that is wrong."""
        recorded = case.recorded()
        if recorded is None:
            return []
        off = np.linalg.norm((recorded - case.right()).reshape(len(recorded), -1), axis=1)
        wrong = np.flatnonzero(off > 0.02 * off.max())
        return [float(case.inputs[1][wrong[0]] - 1)] if len(wrong) and case.inputs[1][wrong[0]] else []
