import numpy as np

from ..rule import Hit, Rule, figure
from ..walk import blocks
from .magnitude_weights import measurable


class MagnitudeBaseline(Rule):
    """Q, K, V or the scores are of another size than in the healthy trace.

    Prompts may differ, so what is compared is the largest value over all tokens but the first (a sink): the
    head vectors' length in the middle head, and a row's highest score above its mean.  Between healthy traces
    of SmolLM2 for different texts lengths differ by a factor of up to 1.8, scores by up to 5.3 (a long text
    against one word eight times).
    """

    id = "magnitude_baseline"
    severity = "warning"
    needs = ("q|q.l2|k|k.l2|v|v.l2|q_rope|q_rope.l2|k_rope|k_rope.l2|scores|scores.stats",)
    needs_baseline = True
    idle = "no tensor in both traces with enough tokens"

    LENGTHS = 2.5
    SCORES, SCORES_OF_OTHER_PROMPT = 3.0, 6.0
    TOKENS = 8

    def __init__(self, context):
        super().__init__(context)
        self.ours, self.rows, self.steps = {}, {}, {}

    def unable(self):
        if why := super().unable():
            return why
        ours, theirs = self.context.trace.header, self.baseline.header
        if ours.architecture != theirs.architecture:
            return f"the baseline is of another architecture ({theirs.architecture or 'unknown'})"
        if ours.model_sha256 and theirs.model_sha256 and ours.model_sha256 != theirs.model_sha256:
            return "the baseline is of another model (its SHA-256 differs)"
        return None

    def see(self, block):
        for name, size in _sizes(block):
            place = name, block.layer
            self.ours[place] = max(self.ours.get(place, 0.0), size)
            self.rows[place] = self.rows.get(place, 0) + len(block.rows)
            self.steps.setdefault(place, []).extend(step.index for step in block.steps)
        return ()

    def conclude(self):
        theirs: dict[tuple, float] = {}
        rows: dict[tuple, int] = {}
        for block in blocks(self.baseline):
            for name, size in _sizes(block):
                place = name, block.layer
                theirs[place] = max(theirs.get(place, 0.0), size)
                rows[place] = rows.get(place, 0) + len(block.rows)
        for place, size in self.ours.items():
            if min(self.rows[place], rows.get(place, 0)) >= self.TOKENS and theirs[place] > 0 and size > 0:
                self.judged += 1
                yield from self._judge(place, size, theirs[place])

    def _judge(self, place, size, healthy):
        (name, layer), times = place, size / healthy
        limit = self._limit(name)
        if not 1 / limit < times < limit:
            what = "scores come to" if name == "scores" else f"|{name}| comes to"
            unit = " above their row's mean" if name == "scores" else ""
            message = f"{what} {figure(size)}{unit}, {figure(times)} times the baseline's {figure(healthy)}"
            expected = f"about {figure(healthy)}"
            weight = abs(float(np.log(times)))
            yield Hit(name, size, expected, message, layer, self.steps[place], weight=weight)

    def _limit(self, name):
        if name != "scores":
            return self.LENGTHS
        ours, theirs = self.context.trace.prompt_ids, self.baseline.prompt_ids
        return self.SCORES if np.array_equal(ours, theirs) else self.SCORES_OF_OTHER_PROMPT


def _sizes(block):
    """What is compared of a block: (tensor, largest size over its tokens)."""
    rows = block.rows > 0
    if not rows.any():
        return
    for name in measurable(block):
        yield name, _largest(np.median(block.lengths(name)[rows], axis=1))
    if block.can_summarize("scores"):
        spread = block.summary("scores", "max") - block.summary("scores", "mean")
        yield "scores", _largest(np.median(spread[:, rows], axis=0))


def _largest(sizes):
    finite = sizes[np.isfinite(sizes)]
    return float(finite.max()) if len(finite) else 0.0
