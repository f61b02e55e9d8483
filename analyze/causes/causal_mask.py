import numpy as np

from ..cause import Cause
from ..reattend import rescored


class CausalMask(Cause):
    """The causal mask is missing, off by one, or not aligned with the cache.

    `missing`: queries of the prefill see keys of the future (TinyLLM#17). `future`: each sees one key more.
    `self`: none sees its own. `top_left`: with a cache, row t sees the first t keys only (hyprstream#1521).
    """

    id = "causal_mask"
    fix = "mask every key whose position is greater than the query's (offset by the length of the cache)"
    default = "missing"
    choices = ("missing", "future", "self", "top_left")
    tell = "scores or probs with their -inf, the query's offset and the length of the cache"
    fires = ("causal_mask", "causal_mask@1=future", "causal_mask=self", "causal_mask=top_left")
    quiet = ("softmax_axis=query", "gqa_map")

    def applies(self, op):
        return op.kind == "attention"

    def change(self, op, value, model):
        if value == "missing":
            return op.with_params(causal=False)

        def masked(scores, q, k):
            queries, keys = scores.shape[1:]
            row, column = np.arange(queries)[:, None], np.arange(keys)[None]
            position = row + keys - queries
            seen = {
                "future": column <= position + 1,
                "self": (column < position) | (position == 0) & (column == 0),
                "top_left": column <= row,
            }[value]
            return np.where(seen, scores, -np.inf).astype(scores.dtype)

        seeing = op.with_params(causal=False) if value == "future" else op
        return seeing.wrapped(rescored(masked))
