"""Measuring what a trace recorded against what its ops give, a block of rows at a time."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..tracer.names import Key
from .blocks import MASKED, Figures, Piece, Workspace, by_step, cut, figures_of
from .blocks import Result as Measures
from .mapped import give_back
from .metrics import Measured
from .recompute import Recompute, Result

FEW = 2.0  # some elements of a row may be off by this much more than all of them
TYPICAL = 0.4  # of what storing may put a row off by at most: half of many rows are off by less
MANY = 8  # rows
PADDING = {"scores": -np.inf, "probs": 0.0}  # what keys that no query of a block sees must hold


class Outcome(NamedTuple):
    """A block's figures by step, the largest error of a row over what is allowed, and what is, squared.

    `rows` is how many there are, `high` how many of them have more than TYPICAL of what is allowed.
    """

    measures: Measures
    excess: np.ndarray
    allowed: np.ndarray
    rows: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class Judged:
    """Figures [tensor, step]; `excess` above 1 is more than rounding, `noise` is the NRMSE to allow."""

    measured: Measured
    excess: np.ndarray
    noise: np.ndarray


class Judge:
    """Called with each recomputed block, on several threads; what it returns is to be added."""

    def __init__(self, recompute: Recompute):
        self._recompute, self._source = recompute, recompute.source
        self._index = {key: i for i, key in enumerate(recompute.keys)}
        shape = len(recompute.keys), len(recompute.trace.steps)
        self._measured = Measured.empty(*shape)
        self._excess, self._allowed, self._rows, self._high = (np.zeros(shape) for _ in range(4))
        self._local = threading.local()

    def __call__(self, result: Result) -> list[Outcome]:
        return [self._measure(piece, noise, result.key) for piece, noise in self._pieces(result)]

    def add(self, outcomes: list[Outcome]) -> None:
        for each in outcomes:
            tensor, steps, _ = each.measures
            self._measured.add([each.measures])
            self._excess[tensor, steps] = np.maximum(self._excess[tensor, steps], each.excess)
            self._allowed[tensor, steps] += each.allowed
            self._rows[tensor, steps] += each.rows
            self._high[tensor, steps] += each.high

    def judged(self) -> Judged:
        with np.errstate(divide="ignore", invalid="ignore"):
            noise = np.sqrt(self._allowed / self._measured.total("bb"))
        lossy = np.array([self._recompute.allowance.is_lossy(key) for key in self._index], bool)
        most = lossy[:, None] & (self._rows >= MANY) & (self._high > self._rows / 2)
        excess = np.where(most, np.maximum(self._excess, 1 / TYPICAL), self._excess)
        return Judged(self._measured, excess, np.where(self._measured.compared, noise, np.nan))

    def _measure(self, piece: Piece, noise: np.ndarray, key: Key) -> Outcome:
        if not hasattr(self._local, "space"):
            self._local.space = Workspace()
        figures = figures_of(piece, self._local.space)
        give_back(piece.a)
        bad = (figures["clashes"] > 0) | (figures["mask_differs"] > 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            excess = np.where(figures["dd"] > 0, np.sqrt(figures["dd"]) / noise, 0.0)
        both = Figures(np.zeros_like(figures.table))
        both["max_abs"] = np.where(bad | np.isnan(excess), np.inf, excess)
        both["dd"] = noise * noise
        both["count"], both["bb"] = 1, excess > TYPICAL
        _, _, table = by_step(piece, both)
        found = Figures(table)
        return Outcome(by_step(piece, figures), *(found[name] for name in ("max_abs", "dd", "count", "bb")))

    # ---- what was recorded, beside what was recomputed

    def _pieces(self, result: Result) -> Iterator[tuple[Piece, np.ndarray]]:
        """Matrices with a row for each token, or for each head and query, and what to allow of each row."""
        key, span, index = result.key, result.span, self._index[result.key]
        if self._recompute.trace.tensors[key].joined:
            recorded = self._recompute.recorded(key, span.rows)
            rows = len(recorded)
            piece = Piece(index, recorded.reshape(rows, -1), result.values.reshape(rows, -1), span.step)
            piece = piece._replace(head_dim=recorded.shape[-1] if recorded.ndim == 3 else 0)
            noise = result.noise
        else:
            piece, noise = (self._decoded if span.decode else self._prefilled)(result, index)
        written = self._source.has(key)[piece.step]
        if not written.all():
            at = np.flatnonzero(written)
            piece, noise = cut(piece, at), noise[at]
        piece = piece._replace(a=self._recompute.unclipped(key, piece.a, piece.b))
        if piece.a.size:
            yield self._without_gaps(key, piece, noise)

    def _without_gaps(self, key: Key, piece: Piece, noise: np.ndarray) -> tuple[Piece, np.ndarray]:
        """Where an engine's log did not print all values, the others say nothing."""
        conventions = self._recompute.trace.tensors[key].conventions
        if not conventions.get("partial") and conventions.get("rows") != "last":
            return piece, noise
        gaps = np.isnan(piece.a)
        share = np.minimum(1, FEW * np.sqrt(1 - gaps.mean(1)))
        return piece._replace(b=np.where(gaps, np.nan, piece.b)), share * noise

    def _prefilled(self, result: Result, index: int) -> tuple[Piece, np.ndarray]:
        key, span, values = result.key, result.span, result.values
        step = int(span.step[0])
        first = span.rows.start - int(self._source.first_row[step])
        rows = slice(first, first + len(span.step))
        whole = self._source.prefill(key, step)
        if key.name in PADDING:
            recorded = whole[:, rows]
            rest = recorded[:, :, values.shape[2] :]
            if rest.size and (float(rest.max()) > MASKED if key.name == "scores" else rest.any()):
                more = np.full((*values.shape[:2], rest.shape[2]), PADDING[key.name])
                values = np.concatenate([values, more], 2)
            recorded = recorded[:, :, : values.shape[2]]
        elif key.name.endswith("_tiles"):
            tiles = len(values)
            recorded = np.moveaxis(whole[:tiles, :, rows], 0, -1)
            values = np.moveaxis(values, 0, -1)
        else:
            recorded, values = whole[:, rows, None], values[:, :, None]
        count = recorded.shape[0] * recorded.shape[1]
        steps = np.full(count, step)
        a, b = recorded.reshape(count, -1), values.reshape(count, -1)
        give_back(whole)
        return Piece(index, a, b, steps, 0, key.name == "scores"), result.noise.reshape(-1)

    def _decoded(self, result: Result, index: int) -> tuple[Piece, np.ndarray]:
        key, span, values = result.key, result.span, result.values
        source, steps = self._source, span.step
        recorded = source.decode(key)[source.decode_index[steps]]
        kv_len = source.kv_len[steps]
        valid: np.ndarray | None = None
        if key.name in PADDING:
            recorded, values = recorded[:, :, 0], values.transpose(1, 0, 2)
            valid = kv_len
        elif key.name.endswith("_tiles"):
            recorded, values = recorded[..., 0].transpose(0, 2, 1), values.transpose(2, 1, 0)
            valid = -(-kv_len // self._recompute.trace.tensors[key].sizes["tile"])
        else:
            values = values.T[:, :, None]
        width, heads = values.shape[2], values.shape[1]
        a, b = recorded[:, :, :width].reshape(-1, width), values.reshape(-1, width)
        each = None if valid is None else np.repeat(valid, heads)
        piece = Piece(index, a, b, np.repeat(steps, heads), 0, key.name == "scores", each)
        return piece, result.noise.T.reshape(-1)
