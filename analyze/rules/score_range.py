import numpy as np

from ..rule import Rule, figure
from ..tally import Place, Tally

KEYS = 8  # keys that a query must see before its row says anything


class ScoreRange(Rule):
    """Scores spread too far: softmax turns into an argmax.

    Judged by the highest score of a row above the row's mean, which a bias shared by all keys cannot change.
    In SmolLM2 the typical row of a layer lies at 1-12, whatever the text and up to 512 tokens; without the
    factor 1/sqrt(head_dim) it is 16-60, and a norm gain taken as 1 + w brings 100 and more.
    """

    id = "score_range"
    severity = "warning"
    needs = ("scores|scores.stats",)
    idle = f"no query sees {KEYS} keys"

    LIMIT = 25.0

    def __init__(self, context):
        super().__init__(context)
        self.spreads, self.highest = Tally(), {}

    def see(self, block):
        rows = block.rows >= KEYS - 1
        if not block.can_summarize("scores") or not rows.any():
            return ()
        top, mean = block.summary("scores", "max"), block.summary("scores", "mean")
        spread = (top - mean)[:, rows]
        place = Place(block.phase, "scores", block.layer)
        self.spreads.add(place, np.median(spread), rows.sum(), [step.index for step in block.steps])
        self.highest[place] = max(self.highest.get(place, 0.0), float(np.abs(top).max()))
        return ()

    def conclude(self):
        for place, entry in self.spreads.items():
            self.judged += 1
            spread, highest = float(entry.mean), self.highest[place]
            if spread > self.LIMIT:
                message = (
                    f"in a typical row the highest score is {figure(spread)} above the mean "
                    f"(healthy: up to 12); scores reach {figure(highest)}"
                )
                yield self.over_phase(
                    place, entry, spread, f"at most {figure(self.LIMIT)}", message, highest=highest
                )
