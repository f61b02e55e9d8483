import numpy as np

from ..rule import Rule


class IdenticalRows(Rule):
    """Different tokens give the same vector: a row that is broadcast, a buffer that is read again.

    Between decode steps it is the sign of a captured graph that replays stale pointers.  Only neighbours with
    ids that differ are compared: equal tokens may well give equal rows.  Two tokens that a vocabulary gives
    the same embedding (unused ones) are why one pair among many is not enough; and where all heads attend to
    one sink, tokens share their attention output, so of that all pairs must be equal.
    """

    id = "identical_rows"
    severity = "error"
    idle = "no two neighbouring tokens that differ"

    SHARE = 0.2  # of the pairs, and
    PAIRS = 2  # at least so many, or all there are
    SHARED = ("attn", "attn_out", "attn_post_norm")
    SKIPPED = ("expert_ids", "expert_weights")  # neighbours do share experts

    def see(self, block):
        ids = self.context.trace.tokens
        if len(block.rows) < 2 or block.rows[-1] >= len(ids):
            return
        differ = ids[block.rows[1:]] != ids[block.rows[:-1]]
        if not differ.any():
            return
        for name, spec in block.specs.items():
            if spec.joined and name not in self.SKIPPED and not name.endswith((".hist", ".l2")):
                self.judged += 1
                yield from self._look(block, name, differ)

    def _look(self, block, name, differ):
        rows = block.raw(name).reshape(len(block.rows), -1)
        if rows.shape[1] < 2:
            return  # one number may well be the same
        pairs = np.flatnonzero(differ)
        pairs = pairs[(rows[pairs, :8] == rows[pairs + 1, :8]).all(1)]  # most differ at once
        pairs = pairs[[bool((rows[pair] == rows[pair + 1]).all()) for pair in pairs]]
        of = np.count_nonzero(differ)
        shown = name.removesuffix(".stats")
        many = shown not in self.SHARED and len(pairs) >= max(self.PAIRS, self.SHARE * of)
        if len(pairs) == of or many:
            place = "decode steps" if block.phase == "decode" else "tokens"
            message = f"{len(pairs)} of {of} pairs of neighbouring, different {place} have the same {shown}"
            yield self.hit(
                block, shown, pairs + 1, len(pairs), "rows that differ", message, weight=len(pairs) / of
            )
