import numpy as np

from ..rule import Rule


class MlScores(Rule):
    """The softmax state (m, l) does not follow from the scores: m = max(s), l = sum of exp(s - m).

    m + ln l is what counts: any reference point m gives the same softmax while nothing overflows.  So a wrong
    m + ln l is an error (an accumulation, merge or mask that differs from the scores), and a right one with
    another m a warning: exp overflows float32 from 88.7 on, float16 from 11.1 on.
    """

    id = "ml_scores"
    severity = "error"
    needs = ("m", "l|scores.stats", "scores|scores.stats")

    FLOOR = 1e-3  # approximate exponentials and float16 products of fused kernels
    EXPECTED = "0 (recomputed from the scores)"
    WRONG_SUM = "m + ln l is off by {value:.4g} from the scores' log-sum-exp ({rows:,} of {of:,} rows)"
    OTHER_MAXIMUM = (
        "m is off by {value:.4g} from the row's highest score ({rows:,} of {of:,} rows): "
        "softmax that does not subtract its maximum?"
    )

    def see(self, block):
        if block.together("m", "l", "scores"):
            highest, total = _from_scores(block)
        elif block.together("m", "scores.stats"):
            highest, total = block.summary("scores", "max"), None
        else:
            return
        self.judged += 1
        m = block.tensor("m").astype(np.float64)
        eps = block.eps("m", "l", "scores")
        tolerance = self.FLOOR + 8 * eps * (1 + np.abs(highest))
        shifted = np.abs(m - highest) > tolerance
        if total is not None:
            excess = m + np.log(block.tensor("l").astype(np.float64)) - total
            wrong = (np.abs(excess) > tolerance) & ~((excess > 0) & self.context.has_sinks)
            yield from self.worst(block, "l", wrong, excess, self.EXPECTED, self.WRONG_SUM)
            shifted &= ~wrong
        off = m - highest
        yield from self.worst(block, "m", shifted, off, self.EXPECTED, self.OTHER_MAXIMUM, severity="warning")


def _from_scores(block):
    """Maximum and log-sum-exp of each row [head, query], summed in float64."""
    highest, total = [], []
    for part in block.parts("scores"):
        top = part.max(-1)
        exponents = np.exp(part - np.where(np.isfinite(top), top, 0)[..., None])
        highest.append(top.astype(np.float64))
        total.append(highest[-1] + np.log(exponents.sum(-1, dtype=np.float64)))
    return np.concatenate(highest), np.concatenate(total)
