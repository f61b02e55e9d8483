from dataclasses import replace

import numpy as np

from ...kernels.rope import inverse_frequencies
from ..cause import Cause
from ..rotation import recorded_frequencies, with_angles


class RopeScaling(Cause):
    """RoPE scaling is ignored where the model has it (`value` 0), or frequencies are divided by `value`.

    ANEForge#58 (llama3 scaling ignored), mlx-vlm#1710 (ten models never pass it). At short positions it looks
    like another base.
    """

    id = "rope_scaling"
    fix = "apply rope.scaling (type, factor, original context, rope_freqs) as the model states it"
    default = 4.0
    continuous = True
    tell = "positions from 128 on, or the table of frequencies"
    fires = ("rope_scaling", "rope_scaling@1=8", "rope_scaling@0,q_rope=2.5")
    quiet = ("rope_theta=500000", "rope_freq", "rope_twice")

    def applies(self, op):
        return op.kind == "rope"

    def change(self, op, value, model):
        if value > 0:
            return op.wrapped(with_angles(lambda positions, freqs: positions[:, None] * freqs / value))
        if not op.weights and op.params.get("scale", 1.0) == 1.0 and not op.params.get("ramp"):
            return op
        kept = {name: op.params[name] for name in ("base", "dims", "pairing")}
        return replace(op, weights=(), params=kept)

    def candidates(self, case):
        return [0.0, 2.0, 4.0, 8.0, 16.0, 32.0, 0.25]

    def fit(self, case):
        """The ratio of frequencies that most pairs agree on."""
        freqs, params = recorded_frequencies(case), case.op.params
        if freqs is None:
            return []
        right = inverse_frequencies(params["dims"], params["base"])
        good = freqs > 0
        return [float(np.median(right[good] / freqs[good]))] if good.any() else []

    def says(self, value):
        return f" (frequencies divided by {value:.6g})" if value else " (the model's own is ignored)"
