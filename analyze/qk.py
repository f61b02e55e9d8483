"""What two traces say of Q, K and scores of one layer, and the three hypotheses about them.

A: a normalisation or bias is missing.  B: Q·K is computed wrongly.  C: the scale factor is wrong.  B and C
are decided, where q, k and scores were recorded, by recomputing q·k in float64 from each side's own q and k:
this tells which side is inconsistent with itself, be it the reference.
"""

from dataclasses import dataclass
from functools import cached_property

from ..tracer.names import Key
from .align import Alignment
from .metrics import Measured
from .noise import INHERITED, Noise
from .pattern import offset, sample
from .products import Fit, Products, products

RATIO = 1.5  # magnitudes further apart than this are not similar
LARGE = 3.0  # RMS of an element of Q or K from which on it is large: normalised ones have about 1
USUAL_DIM = 64  # of a head, where statistics do not tell
SCALE_OFF = 1e-3  # a scale factor this far from 1 is wrong, unless noise is larger
WRONG = 0.05  # scores this far from their own q·k are not their product


@dataclass(frozen=True)
class Answer:
    """One hypothesis: yes, no, or None where nothing that decides it was recorded."""

    yes: bool | None
    figure: str

    def __str__(self) -> str:
        return f"{ {True: 'yes', False: 'no', None: 'cannot tell'}[self.yes] }: {self.figure}"


class Figures:
    """What was measured of one layer's attention in one step."""

    def __init__(self, alignment: Alignment, measured: Measured, noise: Noise, layer: int, step: int):
        self.alignment, self.noise, self.layer, self.step = alignment, noise, layer, step
        self._measured = measured

    def index(self, name: str) -> int | None:
        """The row of a tensor in the figures; None where it was not compared."""
        index = self.alignment.index.get(Key(self.layer, name))
        return index if index is not None and self._measured.compared[index, self.step] else None

    def agrees(self, name: str) -> bool | None:
        """Whether a tensor shows rounding at most; None where it was not compared."""
        index = self.index(name)
        return None if index is None else bool(self.noise.status[index, self.step] < INHERITED)

    @cached_property
    def magnitudes(self) -> dict[str, tuple[float, float]]:
        """Mean L2 norm of head vectors on both sides, of q and k (as recorded last before scores)."""
        found = {side: self._magnitude(side) for side in ("q", "k")}
        return {side: pair for side, pair in found.items() if pair is not None}

    def _magnitude(self, side: str) -> tuple[float, float] | None:
        mags, norms = (
            (self._measured.mag_a, self._measured.mag_b),
            (self._measured.rms_a, self._measured.rms_b),
        )
        for name in (f"{side}_rope", side):
            for form, pair in ((name, mags), (f"{name}.l2", norms)):
                if (index := self.index(form)) is not None:
                    return float(pair[0][index, self.step]), float(pair[1][index, self.step])
        return None

    @property
    def large(self) -> bool:
        """Whether Q or K is large on both sides, for its number of elements."""
        specs = self.alignment.a.specs
        keys = (Key(self.layer, name) for name in ("q_rope", "q", "k_rope", "k"))
        dims = [specs[key].sizes["dim"] for key in keys if key in specs and "dim" in specs[key].sizes]
        least = LARGE * (dims[0] if dims else USUAL_DIM) ** 0.5
        return any(min(pair) > least for pair in self.magnitudes.values())

    @cached_property
    def fits(self) -> Products:
        """Each side's scores against its own q·k."""
        return products(self.alignment, self.layer, self.step)

    @cached_property
    def between(self) -> Fit | None:
        """Our scores against the reference's."""
        index = self.index("scores")
        if index is None:
            return None
        dd, db, bb = (float(self._measured.total(name)[index, self.step]) for name in ("dd", "db", "bb"))
        return Fit(1 + db / bb, (dd / bb) ** 0.5, (max(dd - db * db / bb, 0) / bb) ** 0.5) if bb else None


def missing_norm(figures: Figures, first: Key | None) -> Answer:
    """Hypothesis A, by the magnitudes of Q and K, and by a constant offset of the projections (a bias)."""
    if not figures.magnitudes:
        return Answer(None, "neither Q nor K was recorded on both sides")
    said = magnitudes_text(figures)
    if any(ours > RATIO * theirs or theirs > RATIO * ours for ours, theirs in figures.magnitudes.values()):
        return Answer(True, said)
    if first is not None and first.name in ("q", "k", "v"):
        found = sample(figures.alignment, first, figures.step)
        if found is not None and offset(found.d) is not None:
            return Answer(True, f"every token's {first.name} is off by one offset, as by a bias; {said}")
    return Answer(False, said)


def magnitudes_text(figures: Figures) -> str:
    return ", ".join(
        f"|{side.upper()}| {ours:.4g} against {theirs:.4g}"
        for side, (ours, theirs) in figures.magnitudes.items()
    )


def wrong_product(figures: Figures) -> Answer:
    """Hypothesis B: scores that no factor turns into the product of the same side's q and k."""
    sides = [(who, fit) for who, fit in zip(("ours", "the reference's"), figures.fits) if fit is not None]
    if sides:
        said = ", ".join(f"{who} {fit.residual:.1e}" for who, fit in sides)
        return Answer(any(fit.residual > WRONG for _, fit in sides), f"scores off their own q·k: {said}")
    if figures.agrees("scores"):
        return Answer(False, "scores agree")
    if figures.between is None or not (figures.agrees("q_rope") and figures.agrees("k_rope")):
        return Answer(None, "this needs q_rope, k_rope and scores")
    off = figures.between.residual
    return Answer(off > WRONG, f"q_rope and k_rope agree, scores differ by {off:.1e} with the best factor")


def wrong_scale(figures: Figures) -> Answer:
    """Hypothesis C: one factor, and it alone, makes the scores right."""
    index = figures.index("scores")
    if index is None:
        return Answer(None, "this needs scores")
    tolerance = max(SCALE_OFF, float(figures.noise.noise[index, figures.step]))
    ours, theirs = figures.fits
    if ours is not None and theirs is not None:
        said = f"scores over scale q·k: ours {ours.factor:.6g}, the reference's {theirs.factor:.6g}"
        sound = max(ours.residual, theirs.residual) <= WRONG
        return Answer(sound and abs(ours.factor / theirs.factor - 1) > tolerance, said)
    fit = figures.between
    if fit is None or not (figures.agrees("q_rope") and figures.agrees("k_rope")):
        agree = bool(figures.agrees("scores"))
        return Answer(False if agree else None, "scores agree" if agree else "this needs q_rope and k_rope")
    wrong = abs(fit.factor - 1) > tolerance and fit.residual <= WRONG * abs(fit.factor - 1)
    return Answer(wrong, f"ours are {fit.factor:.6g} times the reference's, which leaves {fit.residual:.1e}")
