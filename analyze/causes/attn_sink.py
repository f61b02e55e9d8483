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
    continuous = True
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
        """m + log(l (1 / share - 1)), where `share` of a row is what the sink leaves to the keys."""
        share = self._share(case)
        if share is None:
            return [-2.0, -1.0, 1.0, 2.0, 4.0]
        right = case.op.compute()(*case.inputs, **case.op.params, want={"m", "l"})
        with np.errstate(all="ignore"):
            sinks = right["m"] + np.log(right["l"] * (1 / share - 1))
        sinks = sinks[np.isfinite(sinks)]
        return [float(np.median(sinks))] if sinks.size else []

    @staticmethod
    def _share(case):
        """right l / l, or how much smaller probs or the output are [head, query]."""
        if (total := case.recorded("l")) is not None:
            return case.right("l") / total
        if (probs := case.recorded("probs")) is not None:
            return probs.sum(-1)
        if (out := case.recorded()) is not None:
            right = case.right()
            return (np.einsum("qhd,qhd->hq", out, right) / np.einsum("qhd,qhd->hq", right, right)).clip(0)
        return None

    def says(self, value):
        return f" (of score {value:.6g})"
