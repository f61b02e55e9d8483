import numpy as np

from ..cause import Cause
from ..rotation import recorded_frequencies

USUAL = (1e4, 1e5, 5e5, 1e6, 5e6, 1e7, 1e3)


class RopeTheta(Cause):
    """The rotary base is not the model's (a default of 10000 where the file says otherwise).

    llama2.c#356, airllm#369. It shows from position 1 on, and grows.
    """

    id = "rope_theta"
    fix = "read the rotary base from the model (rope.freq_base)"
    default = 10000.0
    continuous = True
    fires = ("rope_theta=500000", "rope_theta@1=1000", "rope_theta@0,k_rope=37000")
    quiet = ("rope_scaling=4", "rope_freq", "rope_pairing", "nope_layers@1")

    def applies(self, op):
        return op.kind == "rope"

    def change(self, op, value, model):
        return op.with_params(base=value if value != op.params["base"] else 10 * value)

    def candidates(self, case):
        """The bases met in released models."""
        return [base for base in USUAL if base != case.op.params["base"]]

    def fit(self, case):
        """The straight line of log frequency over pairs, from the angles that were turned by at most pi."""
        freqs = recorded_frequencies(case)
        if freqs is None:
            return []
        pair = np.arange(len(freqs))
        good = (freqs > 0) & (pair > 0)
        if good.sum() < 2:
            return []
        slope = np.dot(pair[good], np.log(freqs[good])) / np.dot(pair[good], pair[good])
        return [float(np.exp(-slope * case.op.params["dims"] / 2))]
