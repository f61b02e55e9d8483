import numpy as np

from ...tracer.names import Key
from ..rule import Rule, figure


class NormGain(Rule):
    """An RMS norm's output, divided by the gain in the model's file, does not have a mean square of 1.

    The gain is taken as 1 + w (or not, where it should be), belongs to another norm, or no norm was applied.
    The mean square is ms/(ms + eps) by definition, so it can be below 1 where the input is small, and never
    above: 0.999-1.000 on SmolLM2.  Of statistics, the rms of the output is held against the largest gain.
    """

    id = "norm_gain"
    severity = "error"
    needs_model = True
    idle = "no norm of the model is recorded"

    ABOVE, BELOW = 1.05, 0.7

    def see(self, block):
        graph, model = self.weights
        for name in dict.fromkeys(name.removesuffix(".stats") for name in block.specs):
            op = graph.producer(Key(block.layer, name))
            if op is None or op.kind != "rms_norm":
                continue
            gain = model.weight(op.weights[0]).astype(np.float64)
            if block.has(name) and block.raw(name).shape[-1] == len(gain):
                self.judged += 1
                yield from self._judge(block, op, gain)
            elif block.has(f"{name}.stats"):
                self.judged += 1
                size = block.summary(name, "rms") / np.abs(gain).max()
                yield from self._report(block, name, size, size > self.ABOVE, "of its largest gain")

    def _judge(self, block, op, gain):
        used, name = gain != 0, op.out.name
        parts = []
        for part in block.parts(name):
            unit = part[..., used] / gain[used]
            parts.append(np.sqrt((unit * unit).mean(-1)).reshape(len(part), -1).mean(1))
        size = np.concatenate(parts) / self._right(block, op)
        small = used.all() & (size < self.BELOW)  # a few dimensions may hold nearly all of the square
        bad = (size > self.ABOVE) | small
        yield from self._report(block, name, size, bad & np.isfinite(size), "once its gain is divided out")

    def _right(self, block, op):
        """The root of ms/(ms + eps) of the input, where recorded: some blocks of Gemma 3 add very little."""
        source = op.inputs[0]
        if source.layer != block.layer or not block.has(source.name) or block.raw(source.name).ndim != 2:
            return 1.0
        power = np.concatenate([(part * part).mean(-1) for part in block.parts(source.name)])
        return np.sqrt((power + 1e-30) / (power + op.params["eps"]))

    def _report(self, block, name, size, bad, how):
        if bad.any():
            rows = np.flatnonzero(bad)
            worst = rows[np.argmax(np.abs(np.log(size[rows] + 1e-30)))]
            typical = float(np.median(size[rows]))
            message = f"{name} has an rms of {figure(typical)} {how} ({len(rows):,} of {len(size):,} tokens)"
            detail = {"token": int(block.rows[worst]), "worst": float(size[worst])}
            weight = abs(float(np.log(typical + 1e-30)))
            yield self.hit(block, name, rows, typical, "1", message, weight=weight, detail=detail)
