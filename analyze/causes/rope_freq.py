import numpy as np

from ..cause import Cause
from ..rotation import with_angles


class RopeFreq(Cause):
    """The formula of the rotary frequencies is wrong.

    Exponent i/dims for 2i/dims (`half_exponent`), counted from 1 (`from_one`, assignment1-basics#22), each
    used for two pairs (`repeated`), or positive (`inverse`).
    """

    id = "rope_freq"
    fix = "frequency i is base^(-2i/dims), for i from 0 to dims/2 - 1"
    default = "half_exponent"
    choices = ("half_exponent", "from_one", "repeated", "inverse")
    fires = ("rope_freq", "rope_freq@1=from_one", "rope_freq=repeated", "rope_freq@0=inverse")
    quiet = ("rope_theta=1000", "rope_scaling=4", "rope_pairing")

    def applies(self, op):
        return op.kind == "rope"

    def change(self, op, value, model):
        def angles(positions, freqs):
            step = freqs[1] / freqs[0] if len(freqs) > 1 else 1.0
            wrong = {
                "half_exponent": lambda: freqs**0.5,
                "from_one": lambda: freqs * step,
                "repeated": lambda: freqs[np.arange(len(freqs)) // 2 * 2],
                "inverse": lambda: 1 / freqs,
            }
            return positions.astype(np.float64)[:, None] * wrong[value]()

        return op.wrapped(with_angles(angles))
