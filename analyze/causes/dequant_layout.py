import numpy as np

from ..cause import Cause, with_weight
from ..weight_mistakes import mistakes

BLOCK = 32  # elements of a legacy GGUF block


class DequantLayout(Cause):
    """Quantised blocks are unpacked in the wrong order: nibbles as neighbours, or low and high exchanged.

    aprender#2127 (the high nibble at index 1 instead of 32), aprender#1924. Injected into weights of a plain
    type, their values are permuted as it would be in blocks of 32.
    """

    id = "dequant_layout"
    fix = "a 32-element block holds elements 0-15 in its low nibbles and 16-31 in its high ones"
    default = "neighbours"
    choices = ("neighbours", "exchanged")
    tell = "the weight as dequantised: trace weights MODEL TENSOR --against DUMP"
    fires = ("dequant_layout@q", "dequant_layout@1,up=exchanged", "dequant_layout@ffn_out")
    quiet = ("weight_transposed@q", "weight_other@0,up=layer+1")

    def applies(self, op):
        return op.kind == "linear" and op.out.layer is not None

    def change(self, op, value, model):
        tensor = op.weights[0]
        kind = {"neighbours": "nibbles_sequential", "exchanged": "nibbles_swapped"}[value]

        def unpacked(weight):
            for mistake in mistakes(model, tensor, weight):
                if mistake.kind == kind:
                    return mistake.make().astype(weight.dtype)
            blocks = weight.reshape(-1, 2, BLOCK // 2)
            wrong = blocks.swapaxes(1, 2) if value == "neighbours" else blocks[:, ::-1]
            return np.ascontiguousarray(wrong).reshape(weight.shape)

        return op.wrapped(with_weight(unpacked))
