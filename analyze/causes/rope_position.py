from ..cause import Cause, with_inputs


class RopePosition(Cause):
    """Decode steps rotate by a wrong position (off by `value`), while the prefill is right."""

    id = "rope_position"
    fix = "rotate the token at index t by position t, in decode as in prefill"
    default = 1.0

    def applies(self, op):
        return op.kind == "rope"

    def change(self, op, value, model):
        def shift(x, positions, *weights):
            return (x, positions + int(value) if len(positions) == 1 else positions, *weights)

        return op.wrapped(with_inputs(shift))

    def candidates(self, op, replay, step, key):
        return [1.0, -1.0, 2.0, -2.0]
