import numpy as np

from ...tracer.text import visible
from ..rule import Hit, Rule
from ..tokens import UNKNOWN


class Repetition(Rule):
    """The generated text repeats itself: the same few tokens at its end, again and again.

    One word over and over is what broken engines write, and so is any loop where the baseline, given the same
    prompt, has none.  Otherwise it is only told: small healthy models loop when they always take the
    likeliest token (7 of 24 texts of 160 tokens by SmolLM2, with periods from 2 to 35), they draw lines of
    dashes, and they go on with what their prompt repeats.
    """

    id = "repetition"
    severity = "warning"
    idle = "fewer than 12 generated tokens"

    LEAST = 12  # tokens that the repetition must cover
    ROUNDS = 3  # how often it must be seen
    SHARE = 0.5  # of the 4-grams that occurred before

    def conclude(self):
        trace = self.context.trace
        if len(trace.generated) < self.LEAST or UNKNOWN in trace.generated[:-1]:
            return
        self.judged += 1
        period, covered = self._loop(trace)
        if not period:
            share = _seen_before(trace.generated)
            if share > self.SHARE:
                message = f"{share:.0%} of the text's 4-token sequences came before in it"
                yield self._hit(share, message, "info", {})
        elif not _goes_on(trace.prompt_ids, trace.generated[-period:]):
            unit, text = trace.generated[-period:].tolist(), _text(trace, period)
            shown = f"“{visible(text, 40)}”" if text else f"the ids {unit}"
            message = f"the text ends in {covered / period:.0f} rounds of {shown} ({_tokens(period)})"
            detail = {"rounds": covered / period, "ids": unit}
            yield self._hit(period, message, self._gravity(period, text), detail)

    def _loop(self, trace):
        """The period with which the text ends, and how many tokens that covers; (0, 0) for none."""
        period, covered = _period(trace.generated)
        return (period, covered) if covered >= max(self.LEAST, self.ROUNDS * period) else (0, 0)

    def _gravity(self, period, text):
        baseline, prompt = self.context.baseline, self.context.trace.prompt_ids
        if baseline is not None and np.array_equal(baseline.prompt_ids, prompt):
            return "info" if self._loop(baseline)[0] else "warning"
        return "warning" if period == 1 and any(map(str.isalpha, text)) else "info"

    def _hit(self, value, message, severity, detail):
        steps = [len(self.context.trace.flushed) - 1]
        expected = "text that goes on"
        return Hit("tokens", float(value), expected, message, steps=steps, severity=severity, detail=detail)


def _tokens(count):
    return "1 token" if count == 1 else f"{count} tokens"


def _period(ids):
    """The period with which `ids` end that covers most of them, and how many it covers; (0, 0) for none."""
    best = (0, 0)
    for period in range(1, len(ids) // 2 + 1):
        same = ids[period:] == ids[:-period]
        run = len(same) if same.all() else int(np.argmin(same[::-1]))
        if run >= period and run + period > best[1]:
            best = (period, run + period)
    return best


def _text(trace, period):
    """What a round says: the last but one, as the very last token was never fed and has no text here."""
    start = len(trace.prompt_ids) + len(trace.generated) - 2 * period
    return b"".join(trace.pieces[start : start + period]).decode("utf-8", "replace")


def _goes_on(prompt, unit):
    """Whether the prompt holds two rounds of the unit already, from whichever token of it they begin."""
    size, ids = len(unit), prompt.tolist()
    rounds = [np.tile(np.roll(unit, shift), 2).tolist() for shift in range(size)]
    return any(ids[at : at + 2 * size] in rounds for at in range(len(ids) - 2 * size + 1))


def _seen_before(ids, size=4):
    """The share of the `size`-grams that occurred earlier; 0 for a short text."""
    if len(ids) < 8 * size:
        return 0.0
    grams = [tuple(ids[at : at + size].tolist()) for at in range(len(ids) - size + 1)]
    return 1 - len(set(grams)) / len(grams)
