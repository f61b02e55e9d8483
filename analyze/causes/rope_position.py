import re

from ..cause import Cause, with_inputs
from ..rotation import recorded_position

FORM = re.compile(r"restart|doubled|(decode|all)?([+-]?\d+)")
FURTHEST = 4096


class RopePosition(Cause):
    """Tokens are rotated by a wrong position: in decode steps, in all, or counted from 0 in each step.

    `decode+1` and `all-1` are off by that much, `restart` begins at 0 in each step and chunk (mlx-vlm#1983),
    `doubled` adds the length of the cache twice (a chunk's offset added again).
    """

    id = "rope_position"
    fix = "rotate the token at index t by position t, in decode as in prefill"
    default = "decode+1"
    form = FORM.pattern
    tell = "the position ids, prefill and decode steps"
    fires = ("rope_position", "rope_position=all+3", "rope_position@1=restart", "rope_position=decode-2")
    quiet = ("rope_twice", "kv_slot", "rope_kernel")

    def applies(self, op):
        return op.kind == "rope"

    def change(self, op, value, model):
        def moved(x, positions, *weights):
            return (x, self._moved(positions, value), *weights)

        return op.wrapped(with_inputs(moved))

    @staticmethod
    def _moved(positions, how):
        if how == "restart":
            return positions - positions[0]
        if how == "doubled":
            return positions + positions[0]
        found = FORM.fullmatch(how)
        assert found is not None
        return positions + int(found[2]) if found[1] == "all" or len(positions) == 1 else positions

    def candidates(self, case):
        values = ["restart", "doubled"] if case.inputs[1][0] else []
        if len(case.inputs[1]) == 1:
            values += [f"decode{shift:+d}" for shift in (1, -1, 2, -2)]
        return [*values, *(f"all{shift:+d}" for shift in (1, -1, 2, -2))]

    def fit(self, case):
        """The position that turns the first row's pairs as they were recorded."""
        start = int(case.inputs[1][0])
        found = recorded_position(case, min(FURTHEST, 4 * (start + 64)))
        if found in (None, start):
            return []
        shift = found - start
        kinds = ("decode", "all") if len(case.inputs[1]) == 1 else ("all",)
        return [f"{kind}{shift:+d}" for kind in kinds]
