import numpy as np

from ..cause import Cause, with_inputs

FURTHEST = 9  # offsets that are tried one by one where embd was not recorded


class EmbedOffset(Cause):
    """The embedding row is not the token's: every id is off by `value`.

    An id that counts from 1, or added special tokens that shift the table.
    """

    id = "embed_offset"
    fix = "look up row i of token_embd for token id i"
    default = 1.0
    fires = ("embed_offset", "embed_offset=-3")
    quiet = ("embed_scale",)

    def applies(self, op):
        return op.kind == "embedding"

    def change(self, op, value, model):
        return op.wrapped(with_inputs(lambda ids, table: ((ids + int(value)) % len(table), table)))

    def candidates(self, case):
        return [1.0, -1.0]

    def fit(self, case):
        """The table's row that is most like the first recorded one."""
        recorded = case.recorded()
        if recorded is None:
            return [float(sign * off) for off in range(2, FURTHEST) for sign in (1, -1)]
        table = case.weight()
        nearest = int(np.argmin(np.linalg.norm(table - recorded[0], axis=1)))
        return [float(nearest - int(case.inputs[0][0]))]
