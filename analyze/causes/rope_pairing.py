from ..cause import Cause


class RopePairing(Cause):
    """Rotary pairs are taken interleaved (2i, 2i+1) where the weights want half-split, or the reverse."""

    id = "rope_pairing"
    fix = "rotate the pairs the weights were stored for: GGUF llama is interleaved, transformers half-split"

    def applies(self, op):
        return op.kind == "rope"

    def change(self, op, value, model):
        other = {"interleaved": "half-split", "half-split": "interleaved"}
        return op.with_params(pairing=other[op.params["pairing"]])
