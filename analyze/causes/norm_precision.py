import ml_dtypes
import numpy as np

from ..cause import Cause

TYPES = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


class NormPrecision(Cause):
    """The norm is computed in 16 bits: x² overflows in float16 from 256 on, and loses bits in bfloat16.

    pytorch#133085 (x² overflows), nntrainer#3935 (the sum of squares does): whole rows become 0 or NaN.
    `_root` also rounds the root before it divides, as PyTorch does on the CPU; `_mean` rounds the mean square
    alone.
    """

    id = "norm_precision"
    fix = "widen to float32 before squaring; round the result back"
    default = "bfloat16"
    choices = ("bfloat16", "float16", "bfloat16_root", "bfloat16_mean")
    tell = "the norm's input in float32"
    fires = ("norm_precision@attn_norm", "norm_precision=float16", "norm_precision@1=bfloat16_mean")
    quiet = ("norm_eps=1e-3",)
    freedom = 1

    def applies(self, op):
        return op.kind == "rms_norm"

    def change(self, op, value, model):
        kind, _, how = value.partition("_")
        narrow = TYPES[kind]
        if how == "mean":
            return op.wrapped(lambda compute: _of_mean(narrow))

        def wrap(compute):
            def rounded(x, *gain, eps, **params):
                kind = x.dtype

                def cut(array):
                    return array.astype(narrow).astype(np.float32)

                with np.errstate(over="ignore", divide="ignore"):
                    x, squares = cut(x), cut(cut(x) ** 2)
                    mean = cut(squares.mean(-1, keepdims=True))
                    if value == "float16":  # a sum of squares overflows where their mean would not
                        mean = cut(cut(squares.sum(-1, keepdims=True)) / x.shape[-1])
                    root = np.sqrt(cut(mean + eps))
                    root = cut(root) if how == "root" else root
                    normed = cut(x * cut(1 / root))
                return (cut(normed * cut(gain[0])) if gain else normed).astype(kind)

            return rounded

        return op.wrapped(wrap)


def _of_mean(narrow):
    def norm(x, gain, *, eps):
        rows = x.reshape(-1, gain.size)
        mean = ((rows * rows).mean(-1, keepdims=True) + eps).astype(narrow).astype(x.dtype)
        return (rows / np.sqrt(mean) * gain).reshape(x.shape)

    return norm
