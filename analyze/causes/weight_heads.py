import numpy as np

from ...tracer.names import NAMES
from ..cause import Cause, with_weight

REPEATED = 64  # head sizes below this many numbers in common are not compared


class WeightHeads(Cause):
    """The rows of a Q, K or V weight are in the wrong order: heads permuted, or rows within each head.

    `half-split` and `interleaved` are the order of RoPE pairs that a converter forgot to change or changed
    twice (llama.cpp#3364), `reversed` one of the heads; a fitted one is told as source heads, 1-0-3-2.
    """

    id = "weight_heads"
    fix = "keep the rows of Q and K in the order the RoPE pairing wants, and heads in the file's order"
    default = "half-split"
    form = r"\d+(-\d+)+"
    choices = ("half-split", "interleaved", "reversed")
    tell = "the weight as loaded: trace weights MODEL TENSOR --against DUMP"
    fires = ("weight_heads@q,k", "weight_heads@1,q=interleaved", "weight_heads@0,q=reversed")
    quiet = ("rope_pairing", "weight_transposed@q", "gqa_map")

    def applies(self, op):
        return op.kind == "linear" and "head" in NAMES[op.out.name].axes

    def change(self, op, value, model):
        heads, order = op.params.get("heads") or 1, self._order(value)
        size = model.shape(op.weights[0])[0] // heads
        if order is not None and sorted(order) == list(range(len(order))) and len(order) != heads:
            return op

        def permuted(weight):
            inner = weight.reshape(heads, size, -1)
            if order is not None:
                return inner[order].reshape(weight.shape)
            if value == "reversed":
                return inner[::-1].reshape(weight.shape)
            shape = (heads, 2, size // 2, -1) if value == "interleaved" else (heads, size // 2, 2, -1)
            return inner.reshape(shape).swapaxes(1, 2).reshape(weight.shape)

        return op.wrapped(with_weight(permuted))

    @staticmethod
    def _order(value):
        return None if value in WeightHeads.choices else [int(head) for head in value.split("-")]

    def fit(self, case):
        """For each head that was recorded the right head that is nearest."""
        recorded, right = case.recorded(), case.right()
        if recorded is None or recorded.ndim != 3 or recorded[:, 0].size < REPEATED:
            return []
        a, b = (array.swapaxes(0, 1).reshape(array.shape[1], -1) for array in (recorded, right))
        off = ((a[:, None] - b[None]) ** 2).sum(-1)
        nearest = off.argmin(1)
        return [] if (nearest == np.arange(len(nearest))).all() else ["-".join(map(str, nearest))]
