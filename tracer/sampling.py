"""Choosing the next token: greedy, or sampled from a seed."""

from dataclasses import dataclass

import numpy as np

from .errors import UserError


@dataclass(frozen=True)
class Sampling:
    """temperature 0 is greedy; top_k 0 and top_p 1 keep every token."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.temperature >= 0 and self.top_k >= 0 and 0 < self.top_p <= 1):
            raise UserError("sampling needs --temperature >= 0, --top-k >= 0 and 0 < --top-p <= 1")


class Sampler:
    """Draws one id per call; the same seed and logits give the same ids."""

    def __init__(self, sampling: Sampling):
        self.sampling = sampling
        self._random = np.random.default_rng(sampling.seed)

    def __call__(self, logits: np.ndarray) -> int:
        """logits [vocab] -> id.  A broken engine's NaN and infinities give the largest number, or id 0."""
        if self.sampling.temperature == 0 or not np.isfinite(logits.max()):
            return _largest(logits)
        order = np.argsort(-logits.astype(np.float64), kind="stable")
        if self.sampling.top_k:
            order = order[: self.sampling.top_k]
        scaled = logits[order].astype(np.float64) / self.sampling.temperature
        probs = np.exp(scaled - scaled[0])
        probs /= probs.sum()
        keep = int(np.searchsorted(np.cumsum(probs), self.sampling.top_p)) + 1
        probs = probs[:keep] / probs[:keep].sum()
        return int(order[self._random.choice(len(probs), p=probs)])


def _largest(logits: np.ndarray) -> int:
    best = int(np.argmax(logits))  # the first NaN, where there is one
    return int(np.argmax(np.where(np.isnan(logits), -np.inf, logits))) if np.isnan(logits[best]) else best
