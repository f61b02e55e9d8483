import numpy as np

from ..cause import Cause

BLOCK = 32  # elements of a legacy GGUF block


class DequantLayout(Cause):
    """Quantised blocks are unpacked in the wrong order: low and high nibbles as neighbours, not as halves."""

    id = "dequant_layout"
    fix = "a 32-element block holds elements 0-15 in its low nibbles and 16-31 in its high ones"

    def applies(self, op):
        return op.kind == "linear" and op.out.layer is not None

    def change(self, op, value, model):
        unpacked: list[np.ndarray] = []  # the permuted weight, made once for all steps

        def wrap(compute):
            def wrong_order(x, weight, *rest, **params):
                if not unpacked:
                    blocks = weight.reshape(-1, 2, BLOCK // 2)
                    unpacked.append(blocks.swapaxes(1, 2).reshape(weight.shape))
                return compute(x, unpacked[0], *rest, **params)

            return wrong_order

        return op.wrapped(wrap)
