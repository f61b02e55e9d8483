from dataclasses import replace

import numpy as np

from ..cause import Cause, with_inputs

ROLES = ("attn_q", "attn_k", "attn_v")


class QkvSplit(Cause):
    """Fused Q, K and V weights are split with the wrong layout.

    Read as groups of a KV head's queries, key and value (`grouped`), or in halves for two ranks (`ranks`),
    where all of Q comes first, then K, then V (Automodel#1324, vllm#42803).
    """

    id = "qkv_split"
    fix = "take the rows of Q first, then those of K, then those of V, before sharding them"
    default = "grouped"
    choices = ("grouped", "ranks")
    fires = ("qkv_split", "qkv_split=ranks", "qkv_split@1,v")
    quiet = ("weight_other@0,k=layer+1", "tp_shard@q")

    def applies(self, op):
        return op.kind == "linear" and op.out.name in ("q", "k", "v") and bool(op.weights)

    def change(self, op, value, model):
        role = f"attn_{op.out.name}"
        others = [other for other in ROLES if other != role]
        names = [op.weights[0].replace(role, other) for other in (role, *others)]
        if not all(name in model for name in names):
            return op
        sizes = {other: model.shape(name)[0] for other, name in zip((role, *others), names)}
        rows = _rows(op.out.name, value, [sizes[other] for other in ROLES], model)

        def split(x, own, first, second, *rest):
            given = dict(zip((role, *others), (own, first, second)))
            return (x, np.concatenate([given[role] for role in ROLES])[rows], *rest)

        return replace(op, weights=(*names, *op.weights[1:])).wrapped(with_inputs(split))


def _rows(name, layout, sizes, model):
    """Which rows of [Q; K; V] are taken for one of them."""
    heads = model.hparam("attention.head_count")
    kv_heads = model.hparam("attention.head_count_kv", heads)
    parts = kv_heads if layout == "grouped" else 2
    inner = [size // parts for size in sizes]
    each = np.arange(sum(inner) * parts).reshape(parts, -1)
    start = sum(inner[: "qkv".index(name)])
    return each[:, start : start + inner["qkv".index(name)]].ravel()
