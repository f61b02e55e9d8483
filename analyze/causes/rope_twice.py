from ..cause import Cause


class RopeTwice(Cause):
    """RoPE is applied twice: every angle is doubled.

    TensorRT-LLM#4040: in the model and again in the fused attention; or to a cached K that was rotated.
    """

    id = "rope_twice"
    fix = "rotate Q and K once, and keep K in the cache as rotated"
    fires = ("rope_twice", "rope_twice@1,k_rope")
    quiet = ("rope_scaling=0.25", "rope_position=all+3", "nope_layers")

    def applies(self, op):
        return op.kind == "rope"

    def change(self, op, value, model):
        def wrap(compute):
            return lambda x, *rest, **params: compute(compute(x, *rest, **params), *rest, **params)

        return op.wrapped(wrap)
