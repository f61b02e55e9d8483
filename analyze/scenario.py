"""The decision tree for Q, K and scores.

Magnitude is the mean L2 norm of head vectors of Q and K; scores are what softmax sees.

1. Both have similar large Q/K magnitudes: normal for this model; look at softmax, V and the output.
2. The reference's are small and ours large: a normalisation or bias is missing.
3. Scores agree: Q·K is right; the fault is in softmax, V or the output.
4. Scores differ: Q·K is wrong: weights, indexing, transpose, cache or scale.

It is asked of the layer with the first divergence (of the first layer for embd, of the last for what comes
after the layers); where nothing diverges only 1 can apply, to the layer with the largest Q.
"""

from dataclasses import dataclass, field

import numpy as np

from ..tracer.names import Key, execution_order
from .align import Alignment
from .metrics import Measured
from .noise import Noise
from .qk import RATIO, Answer, Figures, magnitudes_text, missing_norm, wrong_product, wrong_scale

NORMAL = "large on both sides, normal for this model"


@dataclass(frozen=True)
class Scenario:
    """Which of the four it is (None: none applies), why in a sentence, and the hypotheses."""

    number: int | None = None
    sentence: str = ""
    hypotheses: dict[str, Answer] = field(default_factory=dict)


def decide(alignment: Alignment, measured: Measured, noise: Noise) -> Scenario:
    """Answer the scenario and the hypotheses A, B and C, as far as something relevant was recorded."""
    place = noise.first()
    layers = sorted({key.layer for key in alignment.keys if key.layer is not None})
    if not layers:
        return Scenario()
    if place is None:
        step = int(np.argmax(measured.compared.any(0)))
        return _agreeing([Figures(alignment, measured, noise, layer, step) for layer in layers])
    first, step = alignment.keys[place[0]], place[1]
    layer = first.layer if first.layer is not None else layers[0 if first.name == "embd" else -1]
    figures = Figures(alignment, measured, noise, layer, step)
    if not figures.magnitudes and figures.agrees("scores") is None:
        return Scenario()
    hypotheses = {
        "A": missing_norm(figures, first),
        "B": wrong_product(figures),
        "C": wrong_scale(figures),
    }
    number, sentence = _choose(figures, first, hypotheses)
    return Scenario(number, sentence, hypotheses)


def _agreeing(layers: list[Figures]) -> Scenario:
    """Nothing diverged: large magnitudes on both sides are the model's nature."""
    known = [figures for figures in layers if figures.magnitudes]
    if not known:
        return Scenario()
    largest = max(known, key=lambda figures: max(min(pair) for pair in figures.magnitudes.values()))
    answers = {"A": missing_norm(largest, None), "B": wrong_product(largest), "C": wrong_scale(largest)}
    if not largest.large:
        return Scenario(None, "", answers)
    return Scenario(1, f"{magnitudes_text(largest)} in layer {largest.layer}: {NORMAL}", answers)


def _choose(figures: Figures, first: Key, hypotheses: dict[str, Answer]) -> tuple[int | None, str]:
    scores = figures.agrees("scores")
    if any(ours > RATIO * theirs for ours, theirs in figures.magnitudes.values()):
        where = f"the two part at {first}, so look there for what the reference does and ours does not"
        return 2, f"{magnitudes_text(figures)}: a normalisation or bias is missing; {where}"
    if scores is None:
        return None, ""
    if not scores:
        return 4, f"scores differ: {_why_differ(first, hypotheses)}"
    after = execution_order(first) > execution_order(Key(figures.layer, "attn_out"))
    part = "what comes after attention" if after else "softmax, V or the output"
    part = f"{part}: {first} departs first"
    if figures.large:
        return 1, f"{magnitudes_text(figures)}: {NORMAL}; the fault is in {part}"
    return 3, f"scores agree, so Q·K is right; the fault is in {part}"


def _why_differ(first: Key, hypotheses: dict[str, Answer]) -> str:
    if first.name != "scores":
        return f"they inherit it from {first}, where the two part first"
    if hypotheses["C"].yes:
        return "by one factor: the scale is wrong"
    if hypotheses["B"].yes:
        return "Q·K is wrong (weights, indexing, transpose, cache)"
    return "Q and K agree, and so do their products: the mask is wrong"
