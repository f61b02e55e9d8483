import numpy as np

from ..cause import Cause


class EmbedScale(Cause):
    """The embedding multiplier is missing, doubled or put where the model has none: rows are `value` times.

    Gemma multiplies by sqrt(dim), which ports have left out or applied twice (OpenTau#179, RLinf#1098).
    """

    id = "embed_scale"
    fix = "multiply embedding rows by what the model says, once: sqrt(dim) for Gemma, 1 for Llama and Qwen"
    default = 8.0
    continuous = True
    tell = "the first values of an embedding row and of the table's row"
    fires = ("embed_scale", "embed_scale=0.25")
    quiet = ("embed_offset", "dequant_layout@attn_out")

    def applies(self, op):
        return op.kind == "embedding"

    def change(self, op, value, model):
        return op.with_params(scale=op.params.get("scale", 1.0) * value)

    def candidates(self, case):
        dim = case.model.hparam("embedding_length")
        return [dim**0.5, dim**-0.5, dim, 1 / dim]

    def fit(self, case):
        recorded, right = case.recorded(), case.right()
        return [] if recorded is None else [np.vdot(recorded, right) / np.vdot(right, right)]
