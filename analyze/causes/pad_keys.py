import numpy as np

from ..cause import Cause
from ..reattend import longer, merged


class PadKeys(Cause):
    """`value` keys of padding take part in softmax: zero vectors, whose score is 0.

    tt-metal#6832, simpler#72 (the last block is not masked): l is too large by exp(-m) for each.
    """

    id = "pad_keys"
    fix = "mask the keys beyond the length of the cache with -inf before softmax"
    default = 4.0
    tell = "m and l, the tile's size and the number of keys"
    fires = ("pad_keys", "pad_keys@1=11")
    quiet = ("attn_sink=2.5", "probs_sum", "fa_merge=m0")

    def applies(self, op):
        return op.kind == "attention"

    def change(self, op, value, model):
        count = int(value)

        def padded(scored):
            scores = np.zeros((*scored.scores.shape[:2], count), scored.v.dtype)
            return longer(scored, scores, np.zeros((count, *scored.v.shape[1:]), scored.v.dtype))

        return op if count < 1 else op.wrapped(merged(padded))

    def candidates(self, case):
        keys = len(case.inputs[1])
        missing = {-keys % tile for tile in (8, 16, 32, 64, 128, 256)}
        return [float(count) for count in sorted(missing | set(range(1, 17))) if count]

    def fit(self, case):
        """How often exp(-m) is too much in l."""
        total, top = case.recorded("l"), case.recorded("m")
        if total is None or top is None:
            return []
        right = case.right("l") * np.exp(case.right("m") - top)
        count = np.round(np.median((total - right) * np.exp(top)))
        return [float(count)] if 0 < count < 4096 else []

    def says(self, value):
        return f" ({value:g} keys)"
