import numpy as np

from ..cause import Cause

BLOCK, MOST = 32, 32767


class IntSaturation(Cause):
    """An integer kernel adds pairs of 8-bit products in 16 bits, which saturate.

    ik_llama.cpp#427, llama.cpp#986: `maddubs` takes one operand as unsigned, 0 to 255, so that two products
    may be 64770. Few elements are wrong, all pulled to 32767 times the scales of their block.
    """

    id = "int_saturation"
    fix = "keep the unsigned operand within 7 bits, or widen to 32 bits before pairs are added"
    tell = "activations and weights as the kernel quantises them"
    freedom = 1
    fires = ("int_saturation@ffn_out", "int_saturation@1,up")
    quiet = ("dequant_layout@ffn_out", "tile_tail@ffn_out")

    def applies(self, op):
        return op.kind == "linear" and op.out.layer is not None

    def change(self, op, value, model):
        if model.shape(op.weights[0])[1] % BLOCK:
            return op

        def wrap(compute):
            def saturating(x, weight, *bias, **params):
                y = compute(x, weight, *bias, **params)
                right = compute(x, weight, **params) if bias else y
                made = _product(x.reshape(len(x), -1), weight).reshape(y.shape).astype(y.dtype)
                return y + (made - right)

            return saturating

        return op.wrapped(wrap)


def _product(x, weight):
    """x [token, n] times weight [out, n], both in blocks of 32 signed bytes, the weight's shifted by 128."""
    (a, a_scale), (w, w_scale) = _blocks(x), _blocks(weight)
    total = np.zeros((len(x), len(weight)))
    for block in range(a.shape[1]):
        one, other = a[:, None, block], w[None, :, block] + 128
        pairs = (one * other).reshape(len(x), len(weight), -1, 2).sum(-1)
        sums = np.clip(pairs, -MOST - 1, MOST).sum(-1) - 128 * one.sum(-1)
        total += sums * a_scale[:, None, block] * w_scale[None, :, block]
    return total


def _blocks(rows):
    """Rows [row, n] -> whole numbers [row, block, 32] from -127 to 127, and a scale [row, block]."""
    blocks = rows.astype(np.float64).reshape(len(rows), -1, BLOCK)
    scale = np.abs(blocks).max(-1) / 127
    return np.round(blocks / np.maximum(scale, 1e-300)[..., None]), scale
