from ..cause import Cause

FURTHEST = 33  # elements that are tried one by one where the product was not recorded


class TileTail(Cause):
    """The last elements of a sum are left out: what exceeds whole tiles (`value` elements) is never added.

    llama.cpp#26708, llama.cpp#27450: only where the length is no multiple of the tile, often in one kernel
    of several.
    """

    id = "tile_tail"
    fix = "handle the remainder of K in the kernel, masked, also for partial SIMD groups"
    default = 8.0
    fires = ("tile_tail@ffn_out", "tile_tail@0,q=3", "tile_tail@logits=16")
    quiet = ("dequant_layout@ffn_out", "weight_transposed@q")

    def applies(self, op):
        return op.kind == "linear"

    def change(self, op, value, model):
        kept = model.shape(op.weights[0])[1] - int(value)
        if kept <= 0 or int(value) <= 0:
            return op

        def wrap(compute):
            def cut(x, weight, *bias, **params):
                rows = x.reshape(len(x), -1)
                return compute(rows[:, :kept], weight[:, :kept], *bias, **params)

            return cut

        return op.wrapped(wrap)

    def candidates(self, case):
        return [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0]

    def fit(self, case):
        """The tail whose product is nearest to what is missing: from the last elements on, one by one."""
        recorded = case.recorded()
        if recorded is None:
            return [float(count) for count in range(1, FURTHEST)]
        missing = (case.right() - recorded).reshape(len(recorded), -1)
        x, weight = case.inputs[0].reshape(len(recorded), -1), case.weight()
        tokens, best = slice(0, 8), (float("inf"), 0)
        tail = 0.0
        for count in range(1, min(256, x.shape[1])):
            tail = tail + x[tokens, -count, None] * weight[None, :, -count]
            off = float(((missing[tokens] - tail) ** 2).sum())
            best = min(best, (off, count))
        return [float(best[1])]

    def says(self, value):
        return f" (the last {value:g} elements)"
