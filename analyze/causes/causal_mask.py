from ..cause import Cause


class CausalMask(Cause):
    """The causal mask is missing: queries of the prefill see keys of the future."""

    id = "causal_mask"
    fix = "mask every key whose position is greater than the query's (offset by the length of the cache)"

    def applies(self, op):
        return op.kind == "attention"

    def change(self, op, value, model):
        return op.with_params(causal=False)
