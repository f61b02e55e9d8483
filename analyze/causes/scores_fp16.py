import ml_dtypes
import numpy as np

from ..cause import Cause, with_inputs
from ..reattend import rescored

TYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


class ScoresFp16(Cause):
    """Q·K is kept in 16 bits before it is scaled: it overflows float16 from 65504 on, and loses bits.

    llama.cpp#7805 (KQ needs float32), transformers#33317. `_scaled`: the scores are, as softmax takes them;
    `_operands`: Q and K are rounded, too, as a product in 16 bits does.
    """

    id = "scores_fp16"
    fix = "accumulate and keep Q·K in float32 (GGML_PREC_F32), or scale Q first"
    default = "float16"
    choices = tuple(f"{kind}{how}" for how in ("", "_scaled", "_operands") for kind in TYPES)
    tell = "Q·K before scaling, and its type"
    fires = ("scores_fp16=bfloat16", "scores_fp16@1=bfloat16_scaled", "scores_fp16=bfloat16_operands")
    quiet = ("attn_scale=0.26",)

    def applies(self, op):
        return op.kind == "attention" and not op.params.get("softcap")

    def change(self, op, value, model):
        kind, _, how = value.partition("_")
        scale = 1.0 if how == "scaled" else op.params["scale"]

        def cut(array):
            with np.errstate(over="ignore"):
                return array.astype(TYPES[kind]).astype(array.dtype)

        if how == "operands":
            op = op.wrapped(with_inputs(lambda q, k, *rest: (cut(q), cut(k), *rest)))
        return op.wrapped(rescored(lambda scores, q, k: cut(scores / scale) * scale))
