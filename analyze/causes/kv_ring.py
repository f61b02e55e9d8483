import numpy as np

from ..cause import Cause, with_inputs


class KvRing(Cause):
    """A ring buffer of a sliding window is read by slot number as if it were the position.

    mistral.rs#246, efficient-transformers#1235: right until the first wrap.
    """

    id = "kv_ring"
    fix = "keep the position of every slot, and mask by it"
    tell = "more than twice the window's tokens, and the position of every slot"
    needs = ("window",)
    fires = ("kv_ring", "kv_ring@1")
    quiet = ("swa_width", "kv_slot")

    def applies(self, op):
        return op.kind == "attention" and op.params.get("window") is not None

    def change(self, op, value, model):
        window = op.params["window"]

        def wrapped(q, k, v, *rest):
            slots = np.arange(len(k)) % window
            last = (len(k) - 1 - slots) // window * window + slots  # the token that a slot holds now
            return (q, k[last].copy(), v[last].copy(), *rest)

        return op.wrapped(with_inputs(wrapped))
