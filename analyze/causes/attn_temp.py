import numpy as np

from ..cause import Cause
from ..reattend import rescored


class AttnTemp(Cause):
    """Attention has a temperature by position that the model lacks, or lacks that of the model.

    Scores of position p are 1 + 0.1 log(floor((p + 1) / `value`) + 1) times (ferrox#213, vllm#16439).
    """

    id = "attn_temp"
    fix = "apply attention temperature tuning exactly where the model has it"
    default = 8192.0
    tell = "positions beyond the floor (8192)"
    fires = ("attn_temp=4", "attn_temp@1=8")
    quiet = ("attn_scale=0.3", "alibi")

    def applies(self, op):
        return op.kind == "attention"

    def change(self, op, value, model):
        def tempered(scores, q, k):
            queries, keys = scores.shape[1:]
            position = np.arange(keys - queries, keys)
            return scores * (1 + 0.1 * np.log(np.floor((position + 1) / value) + 1))[:, None]

        return op.wrapped(rescored(tempered))

    def candidates(self, case):
        keys = len(case.inputs[1])
        return [float(2**n) for n in range(1, 15) if 2**n <= keys]
