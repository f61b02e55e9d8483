from ..cause import Cause


class RopePairing(Cause):
    """Rotary pairs are taken interleaved (2i, 2i+1) where the weights want half-split, or the reverse.

    llama2.c#286: weights of transformers are permuted for half-split. Q and K are wrong, V is right.
    """

    id = "rope_pairing"
    fix = "rotate the pairs the weights were stored for: GGUF llama is interleaved, transformers half-split"
    fires = ("rope_pairing", "rope_pairing@1", "rope_pairing@k_rope")
    quiet = ("weight_heads@q,k", "rope_kernel", "rope_theta=1000")

    def applies(self, op):
        return op.kind == "rope"

    def change(self, op, value, model):
        other = {"interleaved": "half-split", "half-split": "interleaved"}
        return op.with_params(pairing=other[op.params["pairing"]])
