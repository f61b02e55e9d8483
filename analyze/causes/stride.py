import numpy as np

from ..cause import Cause, with_inputs

OPERANDS = ("q", "k", "v")


class Stride(Cause):
    """A kernel takes [token, head, dim] for [head, token, dim], or ignores strides: `value` is misread.

    pytorch#163597, candle#3703: right once the tensor was made contiguous.
    """

    id = "stride"
    fix = "pass strides to the kernel, or make q, k and v contiguous in the order that it reads"
    default = "q"
    choices = OPERANDS
    tell = "the strides of q, k and v"
    fires = ("stride", "stride@1=v", "stride=k")
    quiet = ("gqa_map", "kv_slot")

    def applies(self, op):
        return op.kind == "attention"

    def change(self, op, value, model):
        index = OPERANDS.index(value)

        def misread(*operands):
            tokens, heads, dim = operands[index].shape
            read = np.ascontiguousarray(operands[index]).reshape(heads, tokens, dim).swapaxes(0, 1)
            return (*operands[:index], read.copy(), *operands[index + 1 :])

        return op.wrapped(with_inputs(misread))
