import numpy as np

from ..rule import Rule
from ..tally import Place, Tally
from .score_range import KEYS


class SoftmaxSaturation(Rule):
    """In most rows one key takes all of the attention: softmax works as an argmax.

    Healthy heads do that too, on the first token (the attention sink): in SmolLM2 up to 39% of the rows of a
    layer give one key more than 99%, but at most 1% a key other than the first.  Scores that are too large
    make it 50-90%.
    """

    id = "softmax_saturation"
    severity = "warning"
    needs = ("probs|probs.stats|l",)
    idle = f"too few rows of {KEYS} keys"

    ALL = 0.99  # of a row's probability
    ELSEWHERE = 0.25  # of the rows may give all to a key other than the first
    ANYWHERE = 0.85  # of the rows may give all to any key
    ROWS = 32  # heads times queries: fewer say nothing

    def __init__(self, context):
        super().__init__(context)
        self.shares = Tally()

    def see(self, block):
        rows = block.rows >= KEYS - 1
        if rows.any() and (figures := self._highest(block)):
            name, highest, elsewhere = figures
            taken = highest[:, rows] > self.ALL
            shares = np.array([taken.mean(), (taken & elsewhere[:, rows]).mean()])
            place = Place(block.phase, name, block.layer)
            self.shares.add(place, shares, taken.size, [step.index for step in block.steps])
        return ()

    def _highest(self, block):
        """A row's highest probability, and whether its key is known not to be the first [head, query]."""
        if block.has("probs"):
            parts = [(part.max(-1), part.argmax(-1) > 0) for part in block.parts("probs")]
            return "probs", *(np.concatenate(figures) for figures in zip(*parts, strict=True))
        if block.has("probs.stats"):
            name, highest = "probs", block.summary("probs", "max")
        elif block.has("l"):
            name, highest = "l", 1 / block.tensor("l")  # the highest key contributes exp(0) to the sum
        else:
            return None
        return name, highest, np.zeros(highest.shape, bool)

    def conclude(self):
        for place, entry in self.shares.items(self.ROWS):
            self.judged += 1
            anywhere, elsewhere = map(float, entry.mean)
            if anywhere > self.ANYWHERE or elsewhere > self.ELSEWHERE:
                message = f"one key takes more than {self.ALL:.0%} in {anywhere:.0%} of the rows"
                if elsewhere:
                    message += f", in {elsewhere:.0%} a key other than the first"
                expected = f"at most {self.ANYWHERE:.0%}, {self.ELSEWHERE:.0%} away from the first key"
                yield self.over_phase(place, entry, anywhere, expected, message, elsewhere=elsewhere)
