import numpy as np

from ..cause import Cause, with_inputs

OPERANDS = ("q", "k", "v", "out")


class Stride(Cause):
    """A kernel takes [token, head, dim] for [head, token, dim], or ignores strides.

    pytorch#163597, candle#3703: q, k or v is misread, or `out` miswritten; right once it was made contiguous.
    """

    id = "stride"
    fix = "pass strides to the kernel, or make q, k and v contiguous in the order that it reads"
    default = "q"
    choices = OPERANDS
    tell = "the strides of q, k and v"
    fires = ("stride", "stride@1=v", "stride=k", "stride@0=out")
    quiet = ("gqa_map", "kv_slot")

    def applies(self, op):
        return op.kind == "attention"

    def change(self, op, value, model):
        index = OPERANDS.index(value)

        def misread(*operands):
            return (*operands[:index], _misread(operands[index]), *operands[index + 1 :])

        def wrap(compute):
            def written(*operands, **params):
                results = compute(*operands, **params)
                out = results["out"].swapaxes(0, 1)
                return results | {"out": np.ascontiguousarray(out).reshape(results["out"].shape)}

            return written

        return op.wrapped(wrap if value == "out" else with_inputs(misread))


def _misread(array):
    """[token, head, dim] whose memory is taken for [head, token, dim]."""
    tokens, heads, dim = array.shape
    return np.ascontiguousarray(array).reshape(heads, tokens, dim).swapaxes(0, 1).copy()
