import numpy as np

from ..rule import Rule


class Tiles(Rule):
    """The running state of the online softmax breaks its own recursion.

    After each tile of keys m can only rise, and l = l_old · exp(m_old - m) + what the tile adds.  A tile adds
    at most 1 for each of its keys and, where it raised m, at least 1 (its highest key); what exactly, the
    scores tell.  A merge that forgets to rescale, rescales twice, or sums masked keys breaks this.
    """

    id = "tiles"
    severity = "error"
    needs = ("m_tiles",)

    SLACK = 1e-3  # approximate exponentials; the faults of interest are off by exp(m - m_old)
    FALLS = "the running maximum falls by {value:.4g} from a tile to the next ({rows:,} of {of:,} rows)"
    LOSES = "the running sum lacks {value:.4g} that it had or should have gained ({rows:,} of {of:,} rows)"
    OFF = "what a tile adds to the running sum is {value:.4g} off its scores ({rows:,} of {of:,} rows)"
    GAINS = "a tile adds {value:.4g} more than its keys can give ({rows:,} of {of:,} rows)"

    def see(self, block):
        if not block.has("m_tiles"):
            return
        self.judged += 1
        m = block.tensor("m_tiles").astype(np.float64)
        before = np.concatenate([np.full_like(m[:1], -np.inf), m[:-1]])
        slack = self.SLACK + 8 * block.eps("m_tiles") * (1 + np.abs(np.where(np.isfinite(m), m, 0)))
        yield from self._limit(block, "m_tiles", before - m, slack, "never falling", self.FALLS)
        if block.together("m_tiles", "l_tiles"):
            yield from self._sums(block, m, before, slack)

    def _sums(self, block, m, before, slack):
        sums, tile = block.tensor("l_tiles").astype(np.float64), block.specs["l_tiles"].sizes["tile"]
        kept = np.exp(np.where(np.isneginf(before), -np.inf, before - m))
        previous = np.concatenate([np.zeros_like(sums[:1]), sums[:-1]]) * kept
        added, room = sums - previous, slack * (1 + previous) + 8 * block.eps("l_tiles") * sums
        if block.has("scores") and (right := _tile_sums(block, m, tile)) is not None:
            yield from self._limit(block, "l_tiles", np.abs(added - right), room, "sums of exp", self.OFF)
            return
        least = np.where(m > before + slack, 1.0, 0.0)
        yield from self._limit(block, "l_tiles", least - added, room, "no key lost", self.LOSES)
        yield from self._limit(block, "l_tiles", added - tile, room, f"at most {tile} a tile", self.GAINS)

    def _limit(self, block, tensor, excess, room, expected, message):
        """Hits where `excess` [tile, head, query] is above `room`."""
        over = np.where(excess > room, excess, 0).max(0)
        yield from self.worst(block, tensor, over > 0, over, expected, message)


def _tile_sums(block, m, tile):
    """Sum of exp(score - m) over the keys of each tile [tile, head, query]; None where sizes do not fit."""
    keys = block.raw("scores").shape[-1]
    starts = np.arange(0, keys, tile)
    if m.shape != (len(starts), *block.raw("scores").shape[:2]):
        return None
    reference = np.where(np.isneginf(m), 0, m).astype(np.float32)
    sums = np.empty_like(m)
    head = 0
    for part in block.parts("scores"):
        heads = slice(head, head := head + len(part))
        of_key = np.repeat(np.moveaxis(reference[:, heads], 0, -1), tile, axis=-1)[..., :keys]
        exponents = np.exp(part - of_key)
        sums[:, heads] = np.moveaxis(np.add.reduceat(exponents, starts, axis=-1), -1, 0)
    return sums
