import numpy as np

from ..rule import Rule


class RopeLength(Rule):
    """Rotary embedding changes the length of a vector, which a rotation cannot.

    A wrong kernel, a stale table of cosines, pairs that overlap.  YaRN and LongRoPE multiply q and k by one
    constant near 1 (their attention factor): told as info where it is one.
    """

    id = "rope_length"
    severity = "error"
    needs = ("q_rope|q_rope.l2|k_rope|k_rope.l2",)
    idle = "q and k before the rotation not recorded"

    SLACK = 2e-3
    FACTORS = (1.0, 2.0)  # an attention factor lies in between

    def see(self, block):
        for rotated in ("q_rope", "k_rope"):
            before = next((n for n in (f"{rotated[0]}_norm", rotated[0]) if block.can_length(n)), None)
            if before is None or not block.can_length(rotated):
                continue
            length, old = block.lengths(rotated), block.lengths(before)
            if length.shape == old.shape and ((old > 0) & np.isfinite(old) & np.isfinite(length)).all():
                self.judged += 1
                yield from self._judge(block, rotated, before, length / old)

    def _judge(self, block, rotated, before, ratio):
        slack = self.SLACK + 2 * block.eps(rotated, before)
        off = np.abs(ratio - 1)
        if off.max() <= slack:
            return
        row, head = np.unravel_index(np.argmax(off), off.shape)
        constant = np.ptp(ratio) <= slack and self.FACTORS[0] < ratio.mean() < self.FACTORS[1]
        if constant:
            message = (
                f"{rotated} is {ratio.mean():.4g} times as long as {before}, everywhere: an attention factor?"
            )
        else:
            message = f"the rotation changes lengths by a factor of up to {ratio[row, head]:.4g}"
        yield self.hit(
            block,
            rotated,
            np.flatnonzero((off > slack).any(1)),
            ratio[row, head],
            f"1 ± {slack:.0e}",
            message,
            severity="info" if constant else "error",
            weight=float(off[row, head]),
            detail={"head": int(head), "token": int(block.rows[row])},
        )
