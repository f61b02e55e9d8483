import numpy as np

from ...tracer.names import Key
from ..cause import Cause


class AttnScale(Cause):
    """The softmax scale is wrong, missing or applied twice (right: 1/sqrt(head_dim), or the model's own)."""

    id = "attn_scale"
    fix = "multiply Q·K by 1/sqrt(head_dim) (or the model's attention.scale) exactly once"
    default = 1.0

    def applies(self, op):
        return op.kind == "attention"

    def change(self, op, value, model):
        return op.with_params(scale=value)

    def candidates(self, op, replay, step, key):
        """The scale that fits the recorded scores to q·k best; without scores, the usual wrong ones."""
        scores = Key(op.out.layer, "scores")
        dim = replay.graph.model.hparam("embedding_length")
        usual = [1.0, op.params["scale"] ** 2, op.params["scale"] ** 0.5, dim**-0.5]
        if not replay.trace.has(scores, step):
            return usual
        recorded = replay.trace.read(scores, step).astype(np.float64)
        right = replay.compute(op, step)[scores]
        both = np.isfinite(recorded) & np.isfinite(right)
        power = np.dot(right[both], right[both])
        return [op.params["scale"] * np.dot(recorded[both], right[both]) / power] if power else usual
