from dataclasses import replace

from ..cause import Cause


class RopeLongrope(Cause):
    """LongRoPE's long factors are used at a short length, or the short ones throughout.

    llama.cpp#24823 (chosen by the context's size, not the sequence's length), mlxcel#1358 (only one of the
    two tables read).
    """

    id = "rope_longrope"
    fix = "take the long factors once the sequence is longer than the original context, else the short ones"
    default = "long"
    choices = ("long", "short")
    tell = "the size of the context and the length of the sequence"
    needs = ("longrope",)
    fires = ("rope_longrope", "rope_longrope@1,k_rope")
    quiet = ("rope_theta=1000", "rope_scaling=4")

    def applies(self, op):
        return op.kind == "rope" and len(op.weights) == 2

    def change(self, op, value, model):
        short, long = op.weights
        return replace(op, weights=(long, long) if value == "long" else (short, short))
