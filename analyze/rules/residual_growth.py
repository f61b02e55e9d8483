import numpy as np

from ...tracer.stats import LOWEST
from ..rule import Rule, figure
from ..tally import Place, Tally


class ResidualGrowth(Rule):
    """The residual stream explodes: each layer multiplies it.

    Judged by the typical size of its entries (the median of |x|), because healthy models hold massive
    activations in two or three dimensions of a few tokens: 24926 in SmolLM2, where the median is 1-74.  There
    a layer multiplies the median by 14 at most (once), and all layers together by 100.
    """

    id = "residual_growth"
    severity = "warning"
    needs = ("resid_out|resid_out.hist",)
    idle = "fewer than two neighbouring layers recorded"

    ONE_LAYER = 30.0
    SUSTAINED, LAYERS = 1.5, 5  # this factor in so many layers on end
    ALL_LAYERS = 1000.0
    SAMPLE = 64  # rows of a block

    def __init__(self, context):
        super().__init__(context)
        self.sizes = Tally()

    def see(self, block):
        size = self._median(block)
        if size is not None:
            place = Place(block.phase, "resid_out", block.layer)
            self.sizes.add(place, size, len(block.rows), [step.index for step in block.steps])
        return ()

    def _median(self, block):
        """The median over rows of the median |x| of a row; from a histogram within a factor of sqrt(2)."""
        if block.has("resid_out"):
            chosen = np.unique(np.linspace(0, len(block.rows) - 1, self.SAMPLE).astype(int))
            return float(np.median(np.abs(block.raw("resid_out")[chosen].astype(np.float32))))
        if not block.has("resid_out.hist"):
            return None
        counts = block.tensor("resid_out.hist").sum(0).cumsum()
        return float(2.0 ** (LOWEST + 0.5 + np.searchsorted(counts, counts[-1] / 2)))

    def conclude(self):
        for phase in ("prefill", "decode"):
            found = self.sizes.items()
            entries = {p.layer: (p, e) for p, e in found if p.phase == phase and p.layer is not None}
            yield from self._walk(entries)

    def _walk(self, entries):
        """Hits in the layers of a phase; where a layer is missing, growth is counted anew."""
        total, run = 1.0, 0
        for layer in sorted(entries):
            if layer - 1 not in entries:
                total, run = 1.0, 0
                continue
            self.judged += 1
            before, (place, entry) = entries[layer - 1][1].mean, entries[layer]
            factor = entry.mean / before if before > 0 else 1.0
            total, run = total * factor, run + 1 if factor > self.SUSTAINED else 0
            if why := self._why(factor, run, total):
                message = f"the residual stream explodes: {why}; its median entry is {figure(entry.mean)}"
                expected = f"at most {figure(self.ONE_LAYER)} times a layer"
                yield self.over_phase(place, entry, entry.mean, expected, message, weight=total)

    def _why(self, factor, run, total):
        if factor > self.ONE_LAYER:
            return f"one layer multiplies it by {figure(factor)}"
        if total > self.ALL_LAYERS:
            return f"the layers so far multiply it by {figure(total)}"
        return f"{run} layers on end multiply it by {self.SUSTAINED} or more" if run >= self.LAYERS else ""
