from dataclasses import replace

import numpy as np

from ...kernels.rope import inverse_frequencies
from ..cause import Cause
from ..rotation import recorded_frequencies, with_angles

UNEVEN = 0.02  # by what the logarithms of divisors may differ from pair to pair by noise


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
        if isinstance(value, np.ndarray):
            magnitude, freqs = value[0], value[1:]
            return op.with_params(magnitude=magnitude).wrapped(
                with_angles(lambda positions, _: positions[:, None] * freqs)
            )
        if value > 0:
            return op.wrapped(with_angles(lambda positions, freqs: positions[:, None] * freqs / value))
        if not op.weights and op.params.get("scale", 1.0) == 1.0 and not op.params.get("ramp"):
            return op
        kept = {name: op.params[name] for name in ("base", "dims", "pairing")}
        return replace(op, weights=(), params=kept)

    def candidates(self, case):
        return [0.0, 2.0, 4.0, 8.0, 16.0, 32.0, 0.25]

    def fit(self, case):
        """The divisor that most pairs agree on; or what was recorded, where it grows from pair to pair.

        YaRN, Llama 3 and LongRoPE divide slow pairs by more.  Divisors that grow by one factor are none of
        these but another base, and a model with a scaling of its own may have been given a plain one.
        """
        freqs, params = recorded_frequencies(case), case.op.params
        if freqs is None or not (freqs > 0).all():
            return []
        divisors = inverse_frequencies(params["dims"], params["base"]) / freqs
        steps = np.diff(np.log(divisors))
        growing = (steps > -UNEVEN).all() or (steps < UNEVEN).all()
        plain = not {"scale", "ramp"} & params.keys() and not case.op.weights
        even = np.ptp(steps) < UNEVEN and (plain or abs(steps.mean()) > UNEVEN)
        if not growing or even:
            return [float(np.median(divisors))]
        recorded, given = case.recorded()[..., : params["dims"]], case.inputs[0][..., : params["dims"]]
        return [np.array([np.linalg.norm(recorded) / np.linalg.norm(given), *freqs])]

    def says(self, value):
        if isinstance(value, np.ndarray):
            return " (the frequencies of some pairs are divided, as by YaRN or Llama 3's factors)"
        return f" (frequencies divided by {value:.6g})" if value else " (the model's own is ignored)"
