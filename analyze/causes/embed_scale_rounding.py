import ml_dtypes

from ..cause import Cause


class EmbedScaleRounding(Cause):
    """The embedding multiplier is rounded to bfloat16 (55.5 for 55.4256), or is not where training did so.

    transformers#29402, gemma_pytorch#67: Gemma was trained with the rounded one.
    """

    id = "embed_scale_rounding"
    fix = "round sqrt(dim) as the model was trained: to bfloat16 for Gemma"
    tell = "embd in float32, or the multiplier itself"
    needs = ("embed_scale",)
    fires = ("embed_scale_rounding",)
    quiet = ("embed_scale=1.5",)

    def applies(self, op):
        return op.kind == "embedding" and op.params.get("scale", 1.0) != 1.0

    def change(self, op, value, model):
        return op.with_params(scale=float(ml_dtypes.bfloat16(op.params["scale"])))
