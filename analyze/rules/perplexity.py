import numpy as np

from ...tracer.names import Key
from ..rule import Hit, Rule, figure
from ..walk import usual

LOGITS = Key(None, "logits")
ROWS = 16  # of logits that are widened at once


class Perplexity(Rule):
    """The text surprises the reference: what was generated, or the prompt itself, is unlikely.

    The baseline's logits say how likely each generated token is, as far as both were fed the same tokens and
    one further: the token at which greedy texts part after a near tie is likely in both.  Where ours were
    recorded, too, the prompt's perplexity is compared: logits of a broken engine predict it worse.
    """

    id = "perplexity"
    severity = "warning"
    needs_baseline = True
    idle = "no logits of the baseline where both were fed the same tokens"

    EXCESS = 3.0  # nats by which a generated token may be less likely than the reference expects, on average
    FEW = 4  # tokens below which chance has more room
    WORSE = 1.0  # nats by which the prompt may be less likely than to the reference
    LEAST = 4  # tokens of a prompt that can be judged

    def unable(self):
        if why := super().unable():
            return why
        if not np.array_equal(self.context.trace.prompt_ids, self.baseline.prompt_ids):
            return "the baseline has another prompt"
        return None

    def conclude(self):
        trace, prompt = self.context.trace, len(self.context.trace.prompt_ids)
        ids = np.concatenate([trace.prompt_ids, trace.generated])
        shorter = min(len(trace.tokens), len(self.baseline.tokens))
        apart = np.flatnonzero(trace.tokens[:shorter] != self.baseline.tokens[:shorter])
        common = int(apart[0]) if len(apart) else shorter
        theirs = dict(_surprise(self.baseline, ids, range(min(common, len(ids) - 1))))
        yield from self._generated([theirs[at] for at in theirs if at >= prompt - 1])
        yield from self._prompt(dict(_surprise(trace, ids, range(prompt - 1))), theirs)

    def _generated(self, known):
        if not known:
            return
        self.judged += 1
        loss, entropy = np.mean(known, axis=0)
        limit = self.EXCESS * max(1.0, (self.FEW / len(known)) ** 0.5)
        if loss - entropy > limit:
            message = (
                f"the generated text has a perplexity of {figure(np.exp(loss))} under the baseline's logits "
                f"({len(known)} token{'s' * (len(known) > 1)} judged)"
            )
            expected = f"about {figure(np.exp(entropy))}"
            yield Hit("tokens", float(np.exp(loss)), expected, message, steps=[0], weight=float(loss))

    def _prompt(self, ours, theirs):
        both = [at for at in ours if at in theirs]
        if len(both) < self.LEAST:
            return
        self.judged += 1
        mine, reference = (float(np.mean([known[at][0] for at in both])) for known in (ours, theirs))
        if mine - reference > self.WORSE:
            message = (
                f"the prompt has a perplexity of {figure(np.exp(mine))}, under the baseline's logits "
                f"{figure(np.exp(reference))}"
            )
            expected = f"about {figure(np.exp(reference))}"
            yield Hit("logits", float(np.exp(mine)), expected, message, steps=[0], weight=mine)


def _surprise(trace, ids, positions):
    """(position, (-log p of the id that follows, entropy)) in nats, where logits were recorded."""
    if LOGITS not in trace.tensors or not usual(trace.tensors[LOGITS]):
        return
    for step in trace.flushed:
        if not trace.has(LOGITS, step.index):
            continue
        at = trace.rows(step.index)
        logits = trace.read(LOGITS, step.index)
        chosen = np.flatnonzero((at < len(positions)) & (at + 1 < len(ids)))
        for first in range(0, len(chosen), ROWS):
            rows = chosen[first : first + ROWS]
            part = logits[rows].astype(np.float64)
            following = ids[at[rows] + 1]
            if not np.isfinite(part).all() or following.min() < 0 or following.max() >= part.shape[1]:
                continue
            part -= part.max(1, keepdims=True)
            p = np.exp(part)
            total = p.sum(1)
            loss = np.log(total) - part[np.arange(len(rows)), following]
            entropy = np.log(total) - (p * part).sum(1) / total
            yield from zip(at[rows].tolist(), zip(loss.tolist(), entropy.tolist()))
