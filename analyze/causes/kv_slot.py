import re

import numpy as np

from ..cause import Cause, with_inputs

FURTHEST = 17  # slots that are tried one by one where scores were not recorded
FORM = re.compile(r"([kv]?)([+-]?\d+)")


class KvSlot(Cause):
    """Keys and values are read from the wrong cache slot: column j holds token j - value.

    mlx-swift-lm#90 (the write offset never advanced), keys_values#140. `k1` or `v1` has it for one of them.
    """

    id = "kv_slot"
    fix = "write and read the cache at the token's own slot; check the write offset of each step"
    default = "1"
    form = FORM.pattern
    tell = "the cache after writing and at reading, with its table of slots"
    fires = ("kv_slot", "kv_slot@1=-2", "kv_slot=v1", "kv_slot@1=k3", "kv_slot=5")
    quiet = ("gqa_map", "stride=k", "rope_position=all+1")

    def applies(self, op):
        return op.kind == "attention"

    def change(self, op, value, model):
        found = FORM.fullmatch(value)
        assert found is not None
        which, shift = found[1], int(found[2])

        def moved(q, k, v, *rest):
            k = k if which == "v" else np.roll(k, shift, axis=0)
            return (q, k, v if which == "k" else np.roll(v, shift, axis=0), *rest)

        return op.wrapped(with_inputs(moved)) if shift else op

    def candidates(self, case):
        return [f"{which}{shift}" for which in ("", "v", "k") for shift in (1, -1, 2, -2)]

    def fit(self, case):
        """The shift of columns that makes q·k the recorded scores."""
        recorded = case.recorded("scores")
        if recorded is None:
            return [f"{sign * shift}" for shift in range(3, FURTHEST) for sign in (1, -1)]
        q, k = case.inputs[:2]
        scores = np.einsum("qhd,khd->hqk", q, np.repeat(k, q.shape[1] // k.shape[1], 1))
        scores *= case.op.params["scale"]
        seen = np.isfinite(recorded)
        rows = np.where(seen, recorded, 0)
        off = [((np.roll(scores, shift, -1) - rows)[seen] ** 2).sum() for shift in range(len(k))]
        best = int(np.argmin(off))
        shift = best if best <= len(k) // 2 else best - len(k)
        return [f"{which}{shift}" for which in ("", "k")] if shift else []

    def says(self, value):
        which = str(value)[0]
        what = {"k": "keys", "v": "values"}.get(which, "keys and values")
        return f" ({what} {str(value).lstrip('kv')} slots on)"
