import re

import numpy as np

from ..cause import Cause, with_inputs

FORM = re.compile(r"([kv]?)(\d+)(?:-(\d+))?(?:<(\d+))?|past")
FURTHEST = 64  # slots that are tried one by one where neither scores nor probs were recorded


class KvStale(Cause):
    """Slots of the cache hold stale data: zeros, or another token's keys and values.

    `3` or `4-7` are slots of zeros, `5<2` a slot that holds token 2, `v5` one of V only, `past` all that was
    written in earlier steps (vllm#43961, TensorRT-LLM#8813).
    """

    id = "kv_stale"
    fix = "wait for the write before the read, and clear or mask what a recycled page held"
    default = "3"
    form = FORM.pattern
    tell = "the cache when written and when read, run twice"
    freedom = 1
    fires = ("kv_stale", "kv_stale@1=4-7", "kv_stale=5<2", "kv_stale@1=past")
    quiet = ("kv_slot", "pad_keys", "causal_mask")

    def applies(self, op):
        return op.kind == "attention"

    def change(self, op, value, model):
        found = FORM.fullmatch(value)
        assert found is not None

        def stale(q, k, v, *rest):
            if value == "past":
                slots, source = slice(0, len(k) - len(q)), None
            else:
                first, source = int(found[2]), found[4]
                slots = slice(first, int(found[3] or first) + 1)
            made = []
            for name, array in (("k", k), ("v", v)):
                array = array.copy()
                if (value == "past" or found[1] in ("", name)) and slots.start < len(array):
                    array[slots] = array[int(source)] if source and int(source) < len(array) else 0
                made.append(array)
            return (q, *made, *rest)

        return op.wrapped(with_inputs(stale))

    def candidates(self, case):
        return ["past"] if len(case.inputs[1]) > len(case.inputs[0]) else []

    def fit(self, case):
        """The columns of the scores that are wrong, and the key that would give them."""
        d = self._off(case)
        if d is None:
            return [*self._by_row(case)]
        off = np.sqrt((d**2).sum((0, 1)))
        wrong = np.flatnonzero(off > 0.02 * off.max())
        if not off.max() or len(wrong) != wrong[-1] - wrong[0] + 1:
            return []
        if len(wrong) > 1:
            return [f"{wrong[0]}-{wrong[-1]}"]
        slot, source = wrong[0], self._source(case, wrong[0])
        return [f"{slot}", f"k{slot}", *([] if source is None else [f"{slot}<{source}", f"k{slot}<{source}"])]

    @staticmethod
    def _by_row(case):
        """The slot of the first row that is off, with every token before it; else every slot."""
        keys = len(case.inputs[1])
        first = case.first_wrong()
        yield from map(str, range(min(keys, FURTHEST)))
        if first:
            slot = keys - len(case.inputs[0]) + first
            yield from (f"{slot}<{source}" for source in range(min(slot, FURTHEST)))

    @staticmethod
    def _off(case):
        """How far each score is off [head, query, key]; from probs up to one number for each row."""
        recorded, right = case.recorded("scores"), None
        if recorded is not None:
            right = case.right("scores")
        elif case.recorded("probs") is not None:
            with np.errstate(divide="ignore"):
                recorded, right = np.log(case.recorded("probs")), np.log(case.right("probs"))
        if recorded is None or right is None:
            return None
        seen = np.isfinite(recorded) & np.isfinite(right)
        d = np.where(seen, recorded - np.where(seen, right, 0), np.nan)
        if case.recorded("scores") is None:
            d = d[:, 3:]  # rows of few keys have no usual value
            d = d - np.nanmedian(d, axis=-1, keepdims=True) if d.size else d
        return np.nan_to_num(d)

    @staticmethod
    def _source(case, slot):
        """The token whose key gives the scores that were recorded of a slot."""
        recorded = case.recorded("scores")
        if recorded is None:
            return None
        q, k = case.inputs[:2]
        every = np.einsum("qhd,khd->hqk", q, np.repeat(k, q.shape[1] // k.shape[1], 1))
        rows = np.isfinite(recorded[0, :, slot])
        column = recorded[:, rows, slot][..., None]
        return int(((every[:, rows] * case.op.params["scale"] - column) ** 2).sum((0, 1)).argmin())

    def says(self, value):
        return f" (slot {value})" if value != "past" else " (all of earlier steps)"
