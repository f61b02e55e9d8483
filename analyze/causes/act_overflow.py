import numpy as np

from ..cause import Cause, with_output

TOKENS = 32  # thresholds between so many of the largest


class ActOverflow(Cause):
    """The activation overflows to NaN where its input is large: beyond `value` in size, or on one side.

    tanh or exp of a large gate in 16 or 32 bits (llama.cpp#5243 in a shader, llm-scaler#484).
    """

    id = "act_overflow"
    fix = "write the activation so that no exp overflows: x / (1 + exp(-x)) with the sign taken into account"
    default = 11.0
    fires = ("act_overflow=2", "act_overflow@1=1.5")
    quiet = ("activation=relu", "resid_fp16")

    def applies(self, op):
        return op.kind == "glu"

    def change(self, op, value, model):
        low, high = value if isinstance(value, np.ndarray) else (-value, value)

        def overflow(out, gate, up):
            out[(gate < low) | (gate > high)] = np.nan
            return out

        return op.wrapped(with_output(overflow))

    def candidates(self, case):
        return [88.72, 11.09, 10.0, 44.0]

    def fit(self, case):
        """Between the smallest gate that gave NaN and the largest that did not."""
        recorded = case.recorded()
        if recorded is None:  # what was recorded further on tells whole tokens only
            gate = np.abs(case.inputs[0])
            tops = np.sort(gate.reshape(len(gate), -1).max(-1))  # experts have an axis of their own
            return [*((tops[1:] + tops[:-1]) / 2)[-TOKENS:].tolist(), float(tops[0] / 2)]
        bad = np.isnan(recorded)
        if not bad.any():
            return []
        low, high = (_edge(sign * case.inputs[0], bad) for sign in (-1, 1))
        return [_edge(np.abs(case.inputs[0]), bad), np.array([-low, high])]

    def says(self, value):
        if not isinstance(value, np.ndarray):
            return f" (beyond {value:.6g})"
        sides = [f"{word} {edge:.6g}" for word, edge in zip(("below", "above"), value) if np.isfinite(edge)]
        return f" ({' and '.join(sides)})"


def _edge(gate, bad):
    """Between the smallest gate above 0 that gave NaN and the largest that did not; infinite without one."""
    wrong = gate[bad & (gate > 0)]
    if not wrong.size:
        return np.inf
    below = gate[~bad & (gate < wrong.min())]
    return float((wrong.min() + below.max(initial=0)) / 2)
