from itertools import pairwise

import numpy as np

from ..rule import Rule


class DeadHeads(Rule):
    """A head gives nothing, or two heads give the same.

    Weights that were not loaded, a head count or stride that is wrong, a KV head used for all.  Healthy heads
    of SmolLM2 lie between 0.27 and 15 times the median head.  Attention heads that share a KV head may give
    the same (both attend to the sink, or all tokens so far are one), so only others are compared.
    """

    id = "dead_heads"
    severity = "error"
    needs = ("q|q.l2|k|k.l2|v|v.l2|attn|attn.l2",)
    idle = "no row whose tokens differ"

    TENSORS = ("q", "k", "v", "attn")
    NOTHING = 1e-5  # of the median head's length
    SAME = 4  # units in the last place

    def __init__(self, context):
        super().__init__(context)
        ids = context.trace.tokens
        differing = np.flatnonzero(ids != ids[0]) if len(ids) else ids
        self.start = (
            int(differing[0]) if len(differing) else None
        )  # from this token on heads can tell keys apart

    def see(self, block):
        if self.start is None or not (block.rows >= self.start).any():
            return
        rows = np.flatnonzero(block.rows >= self.start)
        for name in self.TENSORS:
            if block.can_length(name) and (lengths := block.lengths(name)[rows]).shape[1] > 1:
                self.judged += 1
                yield from self._dead(block, name, rows, lengths)
                if name in block.specs:
                    yield from self._same(block, name, rows, lengths)

    def _dead(self, block, name, rows, lengths):
        highest, middle = lengths.max(0), np.median(lengths)
        heads = np.flatnonzero(highest <= self.NOTHING * middle)
        if len(heads):
            what = "all heads are" if len(heads) == len(highest) else f"heads {heads.tolist()} are"
            message = f"{what} zero for every token" if not highest[heads].any() else f"{what} next to zero"
            expected = "lengths like the other heads'"
            yield self.hit(block, name, rows, len(heads), expected, message, detail={"heads": heads.tolist()})

    def _same(self, block, name, rows, lengths):
        """Neighbours in the order of a row's lengths are compared: equal heads have equal lengths."""
        order = np.argsort(lengths[0])
        vectors = block.raw(name)
        pairs = []
        for one, other in pairwise(order):
            room = self.SAME * block.eps(name) * lengths[0, one]
            near = lengths[0, other] - lengths[0, one] <= room and not _share(block, name, one, other)
            if near and self._equal(vectors, rows, one, other, block.eps(name)):
                pairs.append(sorted((int(one), int(other))))
        if pairs and lengths.any():
            message = f"heads {pairs[0][0]} and {pairs[0][1]} always give the same ({len(pairs)} such pairs)"
            yield self.hit(block, name, rows, len(pairs), "no two alike", message, detail={"pairs": pairs})

    def _equal(self, vectors, rows, one, other, eps):
        a, b = (vectors[rows, head].astype(np.float32) for head in (one, other))
        return a.any() and bool((np.abs(a - b) <= self.SAME * eps * np.abs(a)).all())


def _share(block, name, one, other):
    """Whether two attention heads may read the same KV head."""
    if name != "attn":
        return False
    if not block.has("v"):
        return True
    group = block.specs["attn"].sizes["head"] // block.specs["v"].sizes["head"]
    return group > 1 and one // group == other // group
