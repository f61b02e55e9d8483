import numpy as np

from ..cause import Cause
from ..reattend import from_scores, merged


class KvDup(Cause):
    """The last token is in the cache twice: it counts double.

    Rapid-MLX#994: a hit in the prefix cache appends the last prompt token again.
    """

    id = "kv_dup"
    fix = "append a token to the cache once: on a prefix hit start behind the last cached one"
    tell = "the length of the cache, and whether the prefix was a hit"
    fires = ("kv_dup", "kv_dup@1")
    quiet = ("pad_keys", "attn_sink", "kv_stale=5<2")

    def applies(self, op):
        return op.kind == "attention"

    def change(self, op, value, model):
        def doubled(scores, v, want, tile):
            keys = scores.shape[-1]
            more = np.concatenate([scores, scores[..., -1:]], -1)
            made = from_scores(more, np.concatenate([v, v[-1:]]), want, tile)
            for name in {"scores", "probs"} & set(made):
                made[name] = made[name][..., :keys]
            for name in {"m_tiles", "l_tiles"} & set(made):
                made[name] = made[name][: -(-keys // tile)]
            return made

        return op.wrapped(merged(doubled))
