import numpy as np

from ...tracer.names import Key
from ..rule import Rule, figure

ROTATED = {"q_rope": ("q_norm", "q"), "k_rope": ("k_norm", "k")}


def measurable(block):
    """The tensors of a block whose lengths are worth judging: rotated ones add nothing to others."""
    for name in ("q", "k", "v", "q_norm", "k_norm", "q_rope", "k_rope"):
        if block.can_length(name) and not any(map(block.can_length, ROTATED.get(name, ()))):
            yield name


class MagnitudeWeights(Rule):
    """Q, K or V vectors are longer than the weights make them (`analyze/expected.py` derives how long).

    Beyond the bound is proof: no input of a right norm gives that.  Several times the expectation is strong
    evidence; text that a model was made for stays below 2.3 times in SmolLM2.
    """

    id = "magnitude_weights"
    severity = "error"
    needs = ("q|q.l2|k|k.l2|v|v.l2|q_rope|q_rope.l2|k_rope|k_rope.l2",)
    needs_model = True
    idle = "Q, K and V do not follow from one norm in this architecture"

    TIMES = 3.5
    ROUNDING = 1.02

    def see(self, block):
        for name in measurable(block):
            expected, lengths = self.context.length(Key(block.layer, name)), block.lengths(name)
            if expected is not None and lengths.shape[1:] == expected.typical.shape:
                self.judged += 1
                yield from self._judge(block, name, lengths, expected)

    def _judge(self, block, name, lengths, expected):
        typical = np.sqrt((np.median(lengths, 0) ** 2).mean())
        right = np.sqrt((expected.typical**2).mean())
        share = lengths / (expected.bound * (self.ROUNDING + block.eps(name)))
        beyond = share > 1
        said = f"|{name}| is {figure(typical)} in a typical head"
        weight, detail = typical / right, {"typical": float(typical), "from_weights": float(right)}
        if beyond.any():
            row, head = np.unravel_index(np.argmax(share), share.shape)
            most = expected.bound[head]
            message = (
                f"{said} (the weights make it {figure(right)}), {figure(lengths[row, head])} in head {head}, "
                f"where a normed input can give {figure(most)} at most"
            )
            rows, top = np.flatnonzero(beyond.any(1)), f"about {figure(right)}, never above {figure(most)}"
            yield self.hit(block, name, rows, typical, top, message, weight=weight, detail=detail)
        elif typical > self.TIMES * right:
            message = f"{said}, {figure(typical / right)} times what the weights make it ({figure(right)})"
            rows = np.arange(len(lengths))
            top = f"about {figure(right)}, at most {self.TIMES:g} times that"
            yield self.hit(
                block, name, rows, typical, top, message, severity="warning", weight=weight, detail=detail
            )
