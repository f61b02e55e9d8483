import ml_dtypes
import numpy as np

from ..cause import Cause
from ..reattend import rescored

TYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


class ScoresFp16(Cause):
    """Q·K is kept in 16 bits before it is scaled: it overflows float16 from 65504 on, and loses bits.

    llama.cpp#7805 (KQ needs float32), transformers#33317.
    """

    id = "scores_fp16"
    fix = "accumulate and keep Q·K in float32 (GGML_PREC_F32), or scale Q first"
    default = "float16"
    choices = ("float16", "bfloat16")
    tell = "Q·K before scaling, and its type"
    fires = ("scores_fp16=bfloat16",)
    quiet = ("attn_scale=0.26",)

    def applies(self, op):
        return op.kind == "attention" and not op.params.get("softcap")

    def change(self, op, value, model):
        scale, narrow = op.params["scale"], TYPES[value]

        def rounded(scores, q, k):
            with np.errstate(over="ignore"):
                return (scores / scale).astype(narrow).astype(scores.dtype) * scale

        return op.wrapped(rescored(rounded))
