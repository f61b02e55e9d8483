from ..cause import Cause, with_inputs


class GateUpSwap(Cause):
    """Gate and up are exchanged: the activation is applied to up.

    mlx-lm#767. If the weights are exchanged, gate and up themselves are wrong.
    """

    id = "gate_up_swap"
    fix = "compute activation(gate) * up"
    tell = "which tensor of the file gate and up were computed with"
    fires = ("gate_up_swap", "gate_up_swap@1")
    quiet = ("activation", "weight_other@gate=ffn_up")

    def applies(self, op):
        return op.kind == "glu"

    def change(self, op, value, model):
        return op.wrapped(with_inputs(lambda gate, up: (up, gate)))
