from dataclasses import replace

import numpy as np

from ..cause import Cause
from ..reattend import attended, finite, merged


class AttnSink(Cause):
    """A sink takes part in softmax where the model has none, or the model's own is left out.

    A sink is one more key, of score `value`, without a value. Softmax with 1 added to its sum, or a sink
    counted twice (ROCm libraries#12229): rows of probs sum to less than 1.
    """

    id = "attn_sink"
    fix = "add the model's learned sink to the softmax sum once; add none where the model has none"
    default = 0.0
    tell = "m and l"
    fires = ("attn_sink", "attn_sink@1=1.5")
    quiet = ("pad_keys", "probs_sum", "value_scale=0.5")

    def applies(self, op):
        return op.kind == "attention"

    def change(self, op, value, model):
        if op.weights:
            return replace(op, weights=())

        def with_sink(scored):
            return attended(scored, np.exp(value - finite(scored.m)).astype(scored.v.dtype))

        return op.wrapped(merged(with_sink))

    def fit(self, case):
        """log(l - right l) + m."""
        total, top = case.recorded("l"), case.recorded("m")
        if total is None or top is None:
            return []
        with np.errstate(all="ignore"):
            sinks = np.log(total - case.right("l")) + top
        sinks = sinks[np.isfinite(sinks)]
        return [float(np.median(sinks))] if sinks.size else []

    def says(self, value):
        return f" (of score {value:.6g})"
