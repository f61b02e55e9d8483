import numpy as np

from ..cause import Cause
from ..reattend import rescored


class Alibi(Cause):
    """Scores get a slope by distance (ALiBi) where the model has none, or by the wrong table of slopes.

    mlx#3071, aprender#2143.
    """

    id = "alibi"
    fix = "add -slope (i - j) only where the model has ALiBi, with slopes 2^(-8 (h + 1) / heads)"
    fires = ("alibi", "alibi@1")
    quiet = ("attn_temp=4", "attn_scale=0.3", "attn_softcap=2")

    def applies(self, op):
        return op.kind == "attention"

    def change(self, op, value, model):
        def sloped(scores, q, k):
            heads, queries, keys = scores.shape
            slopes = 2.0 ** (-8 * (np.arange(heads) + 1) / heads)
            distance = np.arange(keys)[None] - (np.arange(queries)[:, None] + keys - queries)
            return scores + slopes[:, None, None] * distance

        return op.wrapped(rescored(sloped))
