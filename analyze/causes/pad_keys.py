import numpy as np

from ..cause import Cause
from ..reattend import from_scores, merged


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

        def padded(scores, v, want, tile):
            keys = scores.shape[-1]
            zeros = np.zeros((*scores.shape[:2], count), scores.dtype)
            more = np.concatenate([v, np.zeros((count, *v.shape[1:]), v.dtype)])
            made = from_scores(np.concatenate([scores, zeros], -1), more, want, tile)
            for name in {"scores", "probs"} & set(made):
                made[name] = made[name][..., :keys]
            for name in {"m_tiles", "l_tiles"} & set(made):
                made[name] = made[name][: -(-keys // tile)]
            return made

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
        count = round(float(np.median((total - right) * np.exp(top))))
        return [float(count)] if 0 < count < 4096 else []

    def says(self, value):
        return f" ({value:g} keys)"
