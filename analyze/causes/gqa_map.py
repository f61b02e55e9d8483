from ..cause import Cause, with_inputs


class GqaMap(Cause):
    """Query heads read the wrong KV head: head h takes h % kv_heads (tile) instead of h // group (repeat)."""

    id = "gqa_map"
    fix = "query head h reads KV head h // (heads / kv_heads): repeat-interleave, not tile"

    def applies(self, op):
        return op.kind == "attention"

    def change(self, op, value, model):
        def tile_heads(q, k, v, *sinks):
            chosen = [head % k.shape[1] for head in range(q.shape[1])]
            # indexing leaves them in another order
            return q, k[:, chosen].copy(), v[:, chosen].copy(), *sinks

        return op.wrapped(with_inputs(tile_heads))
