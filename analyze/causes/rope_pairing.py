from ..cause import Cause
from ..reorder import half_split, interleaved


class RopePairing(Cause):
    """Rotary pairs are taken interleaved (2i, 2i+1) where the weights want half-split, or the reverse.

    llama2.c#286: weights of transformers are permuted for half-split. Q and K are wrong, V is right.
    `transformers`: neighbours are rotated in weights that have transformers' order of rows.
    """

    id = "rope_pairing"
    fix = "rotate the pairs the weights were stored for: GGUF llama is interleaved, transformers half-split"
    default = "stored"
    choices = ("stored", "transformers")
    fires = ("rope_pairing", "rope_pairing@1", "rope_pairing@k_rope", "rope_pairing=transformers")
    quiet = ("weight_heads@q,k", "rope_kernel", "rope_theta=1000")

    def applies(self, op):
        return op.kind == "rope"

    def change(self, op, value, model):
        other = {"interleaved": "half-split", "half-split": "interleaved"}
        if value == "stored":
            return op.with_params(pairing=other[op.params["pairing"]])
        if op.params["pairing"] != "interleaved":
            return op

        def wrap(compute):
            return lambda x, *rest, **params: interleaved(compute(half_split(x), *rest, **params))

        return op.wrapped(wrap)

    def says(self, value):
        return "" if value == "stored" else " (neighbours, in transformers' order of rows)"
