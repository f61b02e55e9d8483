import numpy as np

from ..rule import Rule


class FlatLogits(Rule):
    """The logits hardly differ over the vocabulary: every token is as likely as every other.

    An output head that is empty, not loaded, or fed a padding row.  The range from the lowest logit to the
    highest is 14 to 40 on SmolLM2, whatever the text; within 0.5 the likeliest token has at most 1.6 times
    the probability of the least likely.
    """

    id = "flat_logits"
    severity = "error"
    needs = ("logits|logits.stats",)

    LEAST = 0.5

    def see(self, block):
        if not block.can_summarize("logits"):
            return
        spread = block.summary("logits", "max") - block.summary("logits", "min")
        self.judged += 1
        flat = np.flatnonzero(spread < self.LEAST)
        if len(flat):
            lowest = spread[flat].min()
            message = (
                f"all logits of {len(flat)} of {len(spread)} tokens lie within {lowest:.3g} of each other"
            )
            yield self.hit(
                block, "logits", flat, lowest, f"a range of more than {self.LEAST}", message, weight=-lowest
            )
