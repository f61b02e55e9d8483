import numpy as np

from ...tracer.stats import STATS
from ..rule import Rule


class NonFinite(Rule):
    """NaN or infinity, told once, at the first tensor that holds one: all that follows inherits it.

    -inf is how a mask looks in `scores` and in the running maximum of a tile without keys, and how some
    engines ban a token in `logits`; anywhere else it is an overflow.
    """

    id = "nonfinite"
    severity = "error"

    MINUS_INFINITY = ("scores", "m_tiles", "logits")

    first = ""

    def see(self, block):
        for name in block.specs:
            if name.endswith((".hist", ".l2")) and block.has(name):
                continue  # of a tensor whose .stats tell more
            self.judged += 1
            shown = name.removesuffix(".stats")
            masked = shown in self.MINUS_INFINITY
            figures = shown != name and block.has(name)
            nan, infinite = _recorded(block, name, masked) if figures else _count(block, name, masked)
            if nan.any() or infinite.any():
                self.first = self.first or shown
                yield self._hit(block, name, shown, nan, infinite)

    def _hit(self, block, name, shown, nan, infinite):
        rows, count = np.flatnonzero(nan + infinite), nan.sum() + infinite.sum()
        what = " and ".join(
            word for word, found in (("NaN", nan.any()), ("infinity", infinite.any())) if found
        )
        message = f"{shown} holds {what}: {count:,.0f} values, from token {block.rows[rows[0]]} on"
        if what == "infinity" and block.specs[name].dtype == "float16":
            message += " (float16 storage ends at 65504: the computation itself may be fine)"
        return self.hit(
            block,
            self.first,
            rows,
            count,
            "finite numbers",
            message,
            detail={"tensor": shown, "nan": float(nan.sum()), "inf": float(infinite.sum())},
        )


def _recorded(block, name, masked):
    """Counts of NaN and infinity per row, from statistics; they do not tell +inf from a mask."""
    figures = block.by_row(name).reshape(len(block.rows), -1, len(STATS)).sum(1)
    infinite = figures[:, STATS.index("inf")]
    return figures[:, STATS.index("nan")], np.zeros_like(infinite) if masked else infinite


def _count(block, name, masked):
    none = np.zeros(len(block.rows))
    if all(_is_clean(part, masked) for part in block.parts(name)):
        return none, none
    rows = block.by_row(name)
    infinite = np.isposinf(rows) if masked else np.isinf(rows)
    return np.isnan(rows).sum(1), infinite.sum(1)


def _is_clean(part, masked):
    """NaN and infinities show in the extremes."""
    return not part.size or (part.max() < np.inf and (masked or part.min() > -np.inf))
