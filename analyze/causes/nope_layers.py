from ..cause import Cause


class NopeLayers(Cause):
    """A layer that should be rotated is not.

    Layers without positions are every n-th of some models (Camelid#535, executorch#22043); elsewhere RoPE was
    left out, or done to Q only.
    """

    id = "nope_layers"
    fix = "rotate Q and K in the layers that have RoPE: all but those the model leaves out"
    fires = ("nope_layers", "nope_layers@1", "nope_layers@k_rope")
    quiet = ("rope_twice", "rope_partial=4", "rope_theta=1000")

    def applies(self, op):
        return op.kind == "rope"

    def change(self, op, value, model):
        return op.wrapped(lambda compute: lambda x, *rest, **params: x.copy())
