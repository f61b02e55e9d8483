import numpy as np

from ..cause import Cause, with_inputs


class GqaMap(Cause):
    """Query heads read the wrong KV head: head h takes h % kv_heads (tile) instead of h // group (repeat).

    jax-js#180, onnx#7274. `v_tile` has it for V only, `first` reads head 0 throughout; a fitted map is
    told as the KV head of each query head.
    """

    id = "gqa_map"
    fix = "query head h reads KV head h // (heads / kv_heads): repeat-interleave, not tile"
    default = "tile"
    form = r"\d+(-\d+)*"
    choices = ("tile", "v_tile", "first", "reversed")
    fires = ("gqa_map", "gqa_map@1=first", "gqa_map=v_tile", "gqa_map@0=reversed")
    quiet = ("weight_heads@0,q=reversed", "stride=k", "kv_slot")

    def applies(self, op):
        return op.kind == "attention"

    def change(self, op, value, model):
        heads, kv_heads = (model.hparam(f"attention.head_count{end}", 1) for end in ("", "_kv"))
        if not (isinstance(heads, int) and isinstance(kv_heads, int)):
            return op  # as many as there are layers
        chosen = self._map(value, heads, kv_heads)
        if len(chosen) != heads or (heads == kv_heads and value in ("tile", "v_tile")):
            return op

        def mapped(q, k, v, *rest):
            right = np.arange(q.shape[1]) // (q.shape[1] // k.shape[1])
            k = k[:, right if value == "v_tile" else chosen]
            return (q, k.copy(), v[:, chosen].copy(), *rest)  # indexing leaves them in another order

        return op.wrapped(with_inputs(mapped))

    @staticmethod
    def _map(value, heads, kv_heads):
        group = heads // kv_heads
        if value in ("tile", "v_tile"):
            return [head % kv_heads for head in range(heads)]
        if value == "first":
            return [0] * heads
        if value == "reversed":
            return [kv_heads - 1 - head // group for head in range(heads)]
        return [int(head) for head in value.split("-")]

    def fit(self, case):
        """For each query head the KV head whose scores are the nearest."""
        recorded = case.recorded("scores")
        if recorded is None:
            return []
        q, k = case.inputs[:2]
        scores = np.einsum("qhd,kgd->hgqk", q, k) * case.op.params["scale"]
        seen = np.isfinite(recorded)[:, None]
        off = np.where(seen, (scores - np.where(seen, recorded[:, None], 0)) ** 2, 0).sum((-1, -2))
        return ["-".join(map(str, off.argmin(1)))]
