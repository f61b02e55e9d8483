# ruff: noqa: E741 - l is the field's name for the softmax sum

import numpy as np

from ..cause import Cause
from ..reattend import attended, finite, merged, weighted


class FaMerge(Cause):
    """The parts of an online softmax are merged wrongly.

    When a tile raises the maximum, what was summed so far is not rescaled: the output (`acc`), the sum (`l`)
    or both; the maximum begins at 0 (`m0`) or the last tile is lost (`tail`). A tile size follows a slash.
    flash-attention#2388, vllm flash-attention#87.
    """

    id = "fa_merge"
    fix = "on a new maximum multiply both l and the accumulated output by exp(m_old - m_new)"
    default = "acc"
    form = r"(acc|l|both|m0|tail)(/[1-9]\d*)?"
    tell = "m and l after each tile, and the tile's size"
    fires = ("fa_merge", "fa_merge@1=l", "fa_merge=both", "fa_merge=m0", "fa_merge@1=tail", "fa_merge=acc/16")
    quiet = ("value_scale=0.5", "pad_keys", "attn_sink")

    def applies(self, op):
        return op.kind == "attention"

    def change(self, op, value, model):
        how, _, size = str(value).partition("/")

        def wrong(scored):
            if size and int(size) != scored.tile:  # the states after tiles of another size have no name
                kept = {*scored.want} - {"m_tiles", "l_tiles"}
                scored = scored._replace(want=kept, tile=int(size))
            return _merge(scored, how)

        return op.wrapped(merged(wrong))

    def candidates(self, case):
        return ["acc", "l", "both", "m0", "tail"]

    def fit(self, case):
        keys = len(case.inputs[1])
        sizes = [size for size in (4, 8, 16, 32, 64, 128, 256) if size < keys]
        return [f"{how}/{size}" for how in ("acc", "l", "both", "tail") for size in sizes]

    def says(self, value):
        how, _, size = str(value).partition("/")
        said = {
            "acc": "the output is not rescaled on a new maximum",
            "l": "the sum is not rescaled on a new maximum",
            "both": "neither output nor sum is rescaled on a new maximum",
            "m0": "the maximum begins at 0",
            "tail": "the last tile is lost",
        }[how]
        return f" ({said}{f', in tiles of {size}' if size else ''})"


def _merge(scored, how):
    """Online softmax over tiles of keys, with one step wrong."""
    scores, v, tile = scored.scores, scored.v, scored.tile
    heads, queries, keys = scores.shape
    m = np.full((heads, queries), 0.0 if how == "m0" else -np.inf, scores.dtype)
    l, acc, states = np.zeros_like(m), np.zeros((queries, heads, v.shape[2]), scores.dtype), []
    for start in range(0, keys, tile):
        span = slice(start, start + tile)
        if how == "tail" and start and start + tile >= keys:
            states.append((m, l))
            break
        m_new = np.maximum(m, scores[..., span].max(-1))
        part = np.exp(scores[..., span] - finite(m_new)[..., None])
        shrink = np.exp(m - finite(m_new))
        l = l * (1 if how in ("l", "both") else shrink) + part.sum(-1)
        acc = acc * (1 if how in ("acc", "both") else shrink.T[..., None]) + weighted(part, v[span])
        m = m_new
        states.append((m, l))
    m_tiles, l_tiles = (np.stack(list(state)) for state in zip(*states))
    results = {"scores": scores, "m": m, "l": l, "m_tiles": m_tiles, "l_tiles": l_tiles}
    probs = attended(scored._replace(want={*scored.want} & {"probs"}))  # a merge computes none
    return probs | scored.pick(results) | {"out": (acc / l.T[..., None]).astype(v.dtype)}
