import numpy as np

from ..rule import Rule


class FinalTile(Rule):
    """The final m and l are not those after the last KV tile.

    The online softmax ends where its last tile leaves it; another value means a lost last tile, a stale
    buffer, or an epilogue that changes units (base-2 logarithms).
    """

    id = "final_tile"
    severity = "error"
    needs = ("m|l", "m_tiles|l_tiles")

    ULPS = 8  # of the coarser storage
    MESSAGE = "the final {name} is {{value:.6g}}, not what the last tile left ({{rows:,}} of {{of:,}} rows)"

    def see(self, block):
        for name in ("m", "l"):
            if block.together(name, f"{name}_tiles"):
                self.judged += 1
                final = block.tensor(name).astype(np.float64)
                last = block.tensor(f"{name}_tiles")[-1].astype(np.float64)
                off = np.where(final == last, 0, np.abs(final - last))
                slack = self.ULPS * block.eps(name, f"{name}_tiles") * (1 + np.abs(last))
                message = self.MESSAGE.format(name=name)
                yield from self.worst(
                    block, name, ~(off <= slack), final, f"{name}_tiles of the last tile", message, size=off
                )
