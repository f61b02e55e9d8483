from ...kernels.rope import pair_slices
from ..cause import Cause
from ..rotation import with_angles


class RopeKernel(Cause):
    """The rotation itself is wrong: turned the other way, or written while it is still read.

    `reversed` has the sign of the sine exchanged; `in_place` computes the second of a pair from the first
    one's new value, so that lengths change (RL#2981, vllm-ascend#12723).
    """

    id = "rope_kernel"
    fix = "a' = a cos - b sin, b' = a sin + b cos, both from the old a and b"
    default = "reversed"
    choices = ("reversed", "in_place")
    fires = ("rope_kernel", "rope_kernel=in_place", "rope_kernel@1,q_rope")
    quiet = ("rope_pairing", "rope_twice", "rope_position=all+2")

    def applies(self, op):
        return op.kind == "rope"

    def change(self, op, value, model):
        if value == "reversed":
            return op.wrapped(with_angles(lambda positions, freqs: -positions[:, None] * freqs))

        def wrap(compute):
            def in_place(x, *rest, dims, pairing, **params):
                first, second = pair_slices(dims, pairing)
                out = compute(x, *rest, dims=dims, pairing=pairing, **params)
                half = x.copy()
                half[..., first] = out[..., first]
                out[..., second] = compute(half, *rest, dims=dims, pairing=pairing, **params)[..., second]
                return out

            return in_place

        return op.wrapped(wrap)
