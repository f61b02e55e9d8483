from dataclasses import replace

import numpy as np

from ...tracer.names import Key
from ..rule import Rule, figure
from ..tally import Place, Tally
from .magnitude_weights import measurable


class Magnitude(Rule):
    """The Q, K or V vectors of one layer, or of one head, are far longer than those beside them.

    In SmolLM2 a layer has at most 2.1 times the length of the layers around it, a head at most 2.4 times that
    of its layer.  The first layer, which reads embeddings and no residual stream, stands out by nature: in
    Gemma 3 270M by 3.9 times.  Some models are uneven by nature (large Q and K biases), so without their file
    this is only told; with it, lengths are divided by those that the weights make, and it is a warning.
    """

    id = "magnitude"
    severity = "info"
    needs = ("q|q.l2|k|k.l2|v|v.l2|q_rope|q_rope.l2|k_rope|k_rope.l2",)
    idle = "fewer than 4 tokens after the first"

    LAYER, FIRST, HEAD = 3.0, 8.0, 5.0
    TOKENS = 4
    AROUND = 2  # layers on either side

    def __init__(self, context):
        super().__init__(context)
        self.lengths = Tally()

    def see(self, block):
        rows = block.rows > 0  # the first token is often a sink, of other lengths than all others
        for name in measurable(block):
            if rows.any():
                typical = np.median(block.lengths(name)[rows], 0)
                steps = [step.index for step in block.steps]
                self.lengths.add(Place(block.phase, name, block.layer), typical, rows.sum(), steps)
        return ()

    def conclude(self):
        kinds: dict[tuple, dict] = {}
        for place, entry in self.lengths.items(self.TOKENS):
            kinds.setdefault(place[:2], {})[place.layer] = (place, entry, self._relative(place, entry.mean))
        for layers in kinds.values():
            self.judged += 1
            middle = {layer: float(np.median(lengths)) for layer, (_, _, lengths) in layers.items()}
            for layer, (place, entry, lengths) in layers.items():
                yield from self._layer(place, entry, layer, middle)
                yield from self._head(place, entry, lengths)

    def _relative(self, place, lengths):
        """Divided by what the weights make of them, where a model says that."""
        expected = self.context.length(Key(place.layer, place.name))
        if expected is None or expected.typical.shape != lengths.shape or not expected.typical.all():
            return lengths
        return lengths / expected.typical

    def _layer(self, place, entry, layer, middle):
        around = [middle[near] for near in _near(layer, self.AROUND) if near in middle]
        limit = self.LAYER if layer else self.FIRST
        if len(around) >= 2 and middle[layer] > limit * max(around):
            times, length = middle[layer] / max(around), float(np.median(entry.mean))
            message = f"|{place.name}| is {figure(length)}, {figure(times)} times that of any layer around it"
            yield self._hit(place, entry, length, f"at most {limit:g} times", message, times)

    def _head(self, place, entry, lengths):
        head, middle = int(np.argmax(lengths)), float(np.median(lengths))
        if middle > 0 and lengths[head] > self.HEAD * middle:
            times, length = lengths[head] / middle, float(entry.mean[head])
            much = f"{figure(length)} in head {head}, {figure(times)} times"
            message = f"|{place.name}| is {much} that of the layer's other heads"
            yield self._hit(place, entry, length, f"at most {self.HEAD:g} times", message, times)

    def _hit(self, place, entry, length, expected, message, times):
        hit = self.over_phase(place, entry, length, expected, message, weight=float(times))
        return replace(hit, severity="info" if self.context.graph is None else "warning")


def _near(layer, reach):
    return [layer + step for step in range(-reach, reach + 1) if step] if layer is not None else []
