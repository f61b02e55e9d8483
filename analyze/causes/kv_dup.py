from ..cause import Cause
from ..reattend import longer, merged


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
        def doubled(scored):
            return longer(scored, scored.scores[..., -1:], scored.v[-1:])

        return op.wrapped(merged(doubled))
