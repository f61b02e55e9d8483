import numpy as np

from ...tracer.names import Key
from ..rule import Hit, Rule
from ..tokens import UNKNOWN


class PromptIndependence(Rule):
    """Two different prompts give the same logits, or the same long text: the prompt does not get through.

    Attention that sees nothing but the last token, a cache that is never read, a buffer of the first run.
    """

    id = "prompt_independence"
    severity = "error"
    needs_baseline = True
    idle = "neither logits nor 8 generated tokens in both traces"

    TEXT = 8  # tokens: shorter answers may well be the same
    CLOSE = 1e-6  # relative difference of logits

    def unable(self):
        if why := super().unable():
            return why
        if np.array_equal(self.context.trace.prompt_ids, self.baseline.prompt_ids):
            return "the baseline has the same prompt"
        return None

    def conclude(self):
        ours, theirs = (_last_logits(trace) for trace in (self.context.trace, self.baseline))
        if ours is not None and theirs is not None and ours[1].shape == theirs[1].shape:
            self.judged += 1
            step, (a, b) = ours[0], (ours[1], theirs[1])
            difference = float(np.linalg.norm(a - b) / max(float(np.linalg.norm(b)), 1e-30))
            if difference <= self.CLOSE:
                message = "two different prompts end in the same logits"
                yield Hit("logits", difference, "a difference", message, steps=[step])
                return
        yield from self._texts()

    def _texts(self):
        ours, theirs = self.context.trace.generated, self.baseline.generated
        length = min(len(ours), len(theirs))
        if length >= self.TEXT and UNKNOWN not in ours[:length]:
            self.judged += 1
            if np.array_equal(ours[:length], theirs[:length]):
                message = f"two different prompts are answered with the same {length} tokens"
                steps = [len(self.context.trace.flushed) - 1]
                yield Hit(
                    "tokens", length, f"fewer than {self.TEXT}", message, steps=steps, severity="warning"
                )


def _last_logits(trace):
    """The step and the logits of the prompt's last token, in float64; None where they are not recorded."""
    key, prefills = Key(None, "logits"), [step for step in trace.flushed if step.phase == "prefill"]
    if not prefills or not trace.has(key, prefills[-1].index) or not trace.tensors[key].joined:
        return None
    step = prefills[-1]
    rows = trace.rows(step.index)
    if not len(rows) or rows[-1] != step.kv_len - 1:
        return None
    logits = trace.read(key, step.index)[-1].astype(np.float64)
    return (step.index, logits) if np.isfinite(logits).all() else None
