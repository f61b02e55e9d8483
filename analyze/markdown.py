"""The "our value / reference value" sheet that people fill in by hand when they debug an engine."""

import re
from collections.abc import Iterable, Iterator

import numpy as np

from ..tracer.names import Key
from ..tracer.text import visible
from .compare import Comparison
from .findings import UNKNOWN
from .noise import STATUSES
from .pattern import Sample, sample
from .report import (
    AFTER,
    BEFORE,
    HYPOTHESES,
    VERDICTS,
    WEAKER,
    coverage_text,
    describe_side,
    error_text,
    number_text,
    sentence,
    values_text,
)

SHEET = {  # what is written down of a layer, and how it is called there
    "attn_norm": "norm before attention",
    "q": "Q",
    "k": "K",
    "v": "V",
    "q_norm": "Q after QK-norm",
    "k_norm": "K after QK-norm",
    "q_rope": "Q after RoPE",
    "k_rope": "K after RoPE",
    "scores": "scores (what softmax sees)",
    "m": "m (softmax maximum)",
    "l": "l (softmax sum)",
    "probs": "probabilities",
    "attn": "probabilities · V",
    "attn_out": "attention output",
    "resid_mid": "residual after attention",
    "ffn_out": "feed-forward output",
    "resid_out": "residual after the layer",
}
FIRST = 4  # values shown of a vector


def sheet(comparison: Comparison) -> str:
    """The whole sheet."""
    lines = ["# Trace comparison", "", *_sides(comparison), "", *_verdict(comparison)]
    if comparison.measured is not None:
        lines += ["", *_values(comparison)]
    if comparison.scenario.hypotheses:
        lines += ["", *_scenario(comparison)]
    if comparison.measured is not None:
        lines += ["", *_tensors(comparison)]
    return "\n".join(lines) + "\n"


def escape(text: str) -> str:
    """Text of a file so that neither a terminal nor a Markdown reader takes it for anything else."""
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", visible(text))


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    """The lines of a Markdown table; cells are escaped already."""
    columns = list(head)
    yield f"| {' | '.join(columns)} |"
    yield f"|{'|'.join('---' for _ in columns)}|"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _sides(comparison: Comparison) -> Iterator[str]:
    found = comparison.alignment
    sides = (("ours (a)", found.a.trace), ("reference (b)", found.b.trace))
    rows = [(name, escape(trace.path.name), escape(describe_side(trace))) for name, trace in sides]
    yield from table(("", "trace", "recording"), rows)
    yield ""
    yield f"{escape(coverage_text(comparison))}."
    yield from (f"\n> {escape(sentence(note))}" for note in comparison.notes)


def _verdict(comparison: Comparison) -> Iterator[str]:
    yield f"## Verdict: {VERDICTS[comparison.verdict][0].lower()}"
    yield ""
    yield escape(sentence(comparison.sentence))
    if comparison.evidence:
        yield ""
        yield from (f"- {escape(text)}" for text in comparison.evidence)
    for cause in comparison.causes:
        yield ""
        if cause.id != UNKNOWN:
            yield f"Cause: `{cause.id}`. {escape(sentence(cause.evidence))} Fix: {escape(cause.fix)}."
        else:
            yield escape(WEAKER if comparison.added_a is None else sentence(cause.evidence))


def _scenario(comparison: Comparison) -> Iterator[str]:
    scenario = comparison.scenario
    yield "## Scenario and hypotheses"
    yield ""
    if scenario.number is not None:
        yield f"**Scenario {scenario.number}.** {escape(sentence(scenario.sentence))}"
        yield ""
    words = {True: "yes", False: "no", None: "cannot tell"}
    rows = ((f"{k}: {HYPOTHESES[k]}", words[v.yes], escape(v.figure)) for k, v in scenario.hypotheses.items())
    yield from table(("hypothesis", "answer", "figure"), rows)


# ---- our value, reference value


def _values(comparison: Comparison) -> Iterator[str]:
    found, first = comparison.alignment, comparison.first
    layers = [key.layer for key in found.keys if key.layer is not None]
    layer = first.layer if first is not None and first.layer is not None else min(layers, default=None)
    step = comparison.rows(0, 1)[0].step if first is None else first.step
    token, head = _spot(comparison, step)
    place = "" if layer is None else f"layer {layer}, "
    yield f"## Values: {place}step {step} ({found.phase(step)})"
    yield ""
    yield f"Vectors are those of token {token}, head {head}; ranges are those of the whole step."
    yield ""
    keys = [Key(layer, name) for name in SHEET] + [key for key in found.keys if key.layer is None]
    rows = [row for key in keys for row in _rows(comparison, key, step, token, head)]
    yield from table(("quantity", "our value", "reference value", "NRMSE", "status"), rows)


def _spot(comparison: Comparison, step: int) -> tuple[int, int]:
    """The token and head to show: where the first divergence is largest, else the last token, head 0."""
    first = comparison.first
    taken = None if first is None else sample(comparison.alignment, first.key, step)
    if taken is None:
        for key in comparison.alignment.keys:
            if (taken := sample(comparison.alignment, key, step)) is not None:
                return int(taken.tokens[-1]), 0
        return 0, 0
    apart = np.abs(np.where(np.isnan(taken.a) != np.isnan(taken.b), np.inf, np.nan_to_num(taken.d)))
    at = np.unravel_index(int(apart.argmax()), apart.shape)
    return int(taken.tokens[at[0]]), int(at[taken.axes.index("head")]) if "head" in taken.axes else 0


def _rows(comparison: Comparison, key: Key, step: int, token: int, head: int) -> Iterator[tuple[str, ...]]:
    index = comparison.alignment.index.get(key)
    if index is None or comparison.measured is None or comparison.noise is None:
        return
    if not comparison.measured.compared[index, step]:
        return
    taken = sample(comparison.alignment, key, step)
    if taken is None or not taken.a.size:
        return
    m, title = comparison.measured, SHEET.get(key.name, escape(key.name))
    status = STATUSES[comparison.noise.status[index, step]]
    yield (title, *_vectors(taken, token, head), error_text(float(m.nrmse[index, step])), status)
    if key.name in ("q", "k", "q_rope", "k_rope"):
        pair = (number_text(float(mag[index, step])) for mag in (m.mag_a, m.mag_b))
        yield (f"\\|{title}\\|, mean over heads", *pair, "", "")
    if taken.a.ndim > 2:
        yield (f"{title}: range", *(_range(side) for side in (taken.a, taken.b)), "", "")


def _vectors(taken: Sample, token: int, head: int) -> tuple[str, str]:
    at = int(np.argmin(np.abs(taken.tokens - token)))
    ours, theirs = taken.a[at], taken.b[at]
    if "head" in taken.axes:
        axis = taken.axes.index("head") - 1
        ours, theirs = (side.take(min(head, side.shape[axis] - 1), axis) for side in (ours, theirs))
    return _listed(ours), _listed(theirs)


def _listed(values: np.ndarray) -> str:
    flat = np.atleast_1d(values).ravel()
    shown = ", ".join("–" if np.isnan(value) else f"{value:.5g}" for value in flat[:FIRST])
    return f"{shown}, …" if flat.size > FIRST else shown


def _range(values: np.ndarray) -> str:
    finite = values[~np.isnan(values)]
    return f"{finite.min():.4g} to {finite.max():.4g}" if finite.size else "nothing finite"


def _tensors(comparison: Comparison) -> Iterator[str]:
    at = comparison.position
    start, stop = (0, BEFORE + AFTER) if at is None else (max(at - BEFORE, 0), at + AFTER)
    yield "## Tensors in execution order"
    yield ""
    figures = (
        "NRMSE",
        "max abs",
        "cosine",
        "scale",
        "ours",
        "reference",
        "noise",
        "added a",
        "added b",
        "values",
    )
    rows = (
        (
            str(row.step),
            escape(str(row.key)),
            row.status,
            *map(error_text, (row.nrmse, row.max_abs)),
            *map(number_text, (row.cosine, row.scale, row.mag_a, row.mag_b)),
            *map(error_text, (row.noise, row.added_a, row.added_b)),
            values_text(row),
        )
        for row in comparison.rows(start, stop)
    )
    yield from table(("step", "tensor", "status", *figures), rows)
