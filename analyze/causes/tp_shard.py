import numpy as np

from ..cause import Cause, with_weight


class TpShard(Cause):
    """Every tensor-parallel rank has loaded the rows of rank 0 (`value` ranks).

    Columns from n / ranks on repeat the first ones (vllm#8017, vllm#27570).
    """

    id = "tp_shard"
    fix = "give rank r the rows r n/ranks to (r+1) n/ranks of the projection's output size"
    default = 2.0
    tell = "each rank's tensors before they are joined"
    fires = ("tp_shard@q", "tp_shard@1,up=4")
    quiet = ("qkv_split@q", "weight_heads@q=reversed")

    def applies(self, op):
        return op.kind == "linear" and op.out.name in ("q", "k", "v", "gate", "up")

    def change(self, op, value, model):
        rows, ranks = model.shape(op.weights[0])[0], int(value)
        if ranks < 2 or rows % ranks:
            return op
        return op.wrapped(with_weight(lambda weight: weight[np.arange(rows) % (rows // ranks)]))

    def candidates(self, case):
        return [2.0, 4.0, 8.0, 16.0]

    def says(self, value):
        return f" ({value:g} ranks)"
