import numpy as np

from ..cause import Cause, with_weight
from ..weight_mistakes import mistakes

BLOCK = 32


class DequantScale(Cause):
    """A quantised block's scale, minimum or zero point is left out, or is the next block's.

    aprender#2115 (6-bit scales read as 4-bit), vllm#38966 (zero point off by one).
    """

    id = "dequant_scale"
    fix = "apply each block's own scale, then its minimum or zero point"
    default = "no_min"
    choices = ("no_min", "no_scale", "no_zero_point", "next_block")
    tell = "the weight as dequantised: trace weights MODEL TENSOR --against DUMP"
    fires = ("dequant_scale@q", "dequant_scale@1,v=no_scale", "dequant_scale@0,gate=next_block")
    quiet = ("dequant_layout@q", "weight_transposed@q")
    needs = ("Q4_1",)

    def applies(self, op):
        return op.kind == "linear"

    def change(self, op, value, model):
        tensor = op.weights[0]
        if model.tensor_type(tensor)[0] != "Q":
            return op
        made = {mistake.kind: mistake for mistake in mistakes(model, tensor, model.weight(tensor))}
        if value != "next_block":
            if value not in made:
                return op
            return op.wrapped(with_weight(lambda weight: made[value].make().astype(weight.dtype)))

        def with_next_scale(weight):
            blocks = weight.reshape(-1, BLOCK)
            size = np.abs(blocks).max(1, keepdims=True)
            size = np.where(size > 0, size, 1)
            return (blocks / size * np.roll(size, -1, axis=0)).reshape(weight.shape)

        return op.wrapped(with_weight(with_next_scale))
