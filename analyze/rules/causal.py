import numpy as np

from ..rule import Rule


class Causal(Rule):
    """A query attends to keys that come after it.

    The causal mask is missing, or aligned with the wrong corner when a cache stands before the prompt.  It
    shows in the prefill only: a decode step has no later keys.
    """

    id = "causal"
    severity = "error"
    needs = ("probs|scores|scores.stats",)
    idle = "no recorded row has keys after it in its step (decode, or one-token prompts)"

    SHARE = 1e-4  # of a row's probability on later keys
    MASKED = -1e4  # engines mask with -inf, or with a large negative number
    BELOW = 80.0  # under the row's maximum: exp of it is 0 in float32 beside 1
    BY_PROBS = (
        "queries see the future: it has {value:.1%} of token {token}'s attention ({rows:,} of {of:,} rows)"
    )
    BY_SCORES = (
        "queries see the future: {value:.0f} keys unmasked for token {token} ({rows:,} of {of:,} rows)"
    )

    def unable(self):
        if self.context.hparam("attention.causal") is False:
            return "the model declares that its attention is not causal"
        return super().unable()

    def see(self, block):
        if not (block.kv_len - 1 > block.rows).any():
            return
        if block.has("probs"):
            name, amount, limit, message = "probs", _later_share(block), self.SHARE, self.BY_PROBS
        elif block.has("scores"):
            name, amount, limit, message = "scores", self._unmasked(block), 0, self.BY_SCORES
        elif block.has("scores.stats"):
            name, amount, limit, message = "scores", self._masks_missing(block), 0, self.BY_SCORES
        else:
            return
        self.judged += 1
        yield from self.worst(block, name, amount > limit, amount, "none", message)

    def _unmasked(self, block):
        """How many later keys are not masked [head, query]."""
        counts = []
        for part in block.parts("scores"):
            later = _later(block, part)
            highest = np.where(later, -np.inf, part).max(-1, keepdims=True)
            seen = later & (part > self.MASKED) & (part > highest - self.BELOW)
            counts.append(np.count_nonzero(seen, axis=-1))
        return np.concatenate(counts)

    def _masks_missing(self, block):
        """How many masked scores a row lacks [head, query], from statistics; -inf is the mask there."""
        missing = block.kv_len - 1 - block.rows - block.summary("scores", "inf")
        other_mask = block.summary("scores", "min") < self.MASKED
        return np.where(other_mask, 0, np.maximum(missing, 0))


def _later_share(block):
    """The probability on later keys [head, query]."""
    shares = [np.where(_later(block, part), part, 0).sum(-1) for part in block.parts("probs")]
    return np.concatenate(shares)


def _later(block, part):
    """Mask [query, key], True where the key comes after the query."""
    return np.arange(part.shape[-1]) > block.rows[:, None]
