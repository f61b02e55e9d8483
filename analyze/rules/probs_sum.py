import numpy as np

from ..rule import Rule


class ProbsSum(Rule):
    """Attention probabilities of a row do not sum to 1, or are negative.

    A wrong normaliser (l), a merge of tiles that forgets to rescale, padding keys in the sum.  Models with
    attention sinks (gpt-oss) give the sink a share that no key has: there the sum may be anything up to 1.
    The tolerance is what the storage explains: each probability is rounded, all the same way at worst.
    """

    id = "probs_sum"
    severity = "error"
    needs = ("probs|probs.stats",)

    FLOOR = 1e-4  # of the sum: float32 sums of thousands of keys, approximate exponentials
    SUM = "probabilities of a row sum to {value:.4g} ({rows:,} of {of:,} rows, in {heads} heads)"
    NEGATIVE = "a probability is negative: {value:.4g} ({rows:,} of {of:,} rows, in {heads} heads)"

    def see(self, block):
        if not block.can_summarize("probs"):
            return
        self.judged += 1
        sums, lowest = _sums(block)
        tolerance = self.FLOOR + 4 * block.eps("probs")
        off = sums - 1 if self.context.has_sinks else np.abs(sums - 1)
        expected = f"1 ± {tolerance:.0e}"
        yield from self.worst(block, "probs", off > tolerance, sums, expected, self.SUM, size=off)
        yield from self.worst(block, "probs", lowest < -tolerance, lowest, "0 or more", self.NEGATIVE)


def _sums(block):
    """Sum and least probability of each row [head, query]."""
    if block.has("probs"):
        parts = [(part.sum(-1, dtype=np.float64), part.min(-1)) for part in block.parts("probs")]
        sums, lowest = (np.concatenate(figures) for figures in zip(*parts, strict=True))
        return sums, lowest
    count = block.kv_len - block.summary("probs", "nan") - block.summary("probs", "inf")
    return block.summary("probs", "mean") * count, block.summary("probs", "min")
