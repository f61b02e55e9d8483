"""Rotary embedding with its angles changed: for causes that are not a parameter of the kernel."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ..kernels.rope import inverse_frequencies, pair_slices
from ..tracer.graph import Compute

if TYPE_CHECKING:
    from .segment import Case

# positions [token], frequencies [pair] -> [token, pair]
Angles = Callable[[np.ndarray, np.ndarray], np.ndarray]


def with_angles(change: Angles, table: Any = None) -> Callable[[Compute], Compute]:
    """A wrap of RoPE that rotates by `change(positions, frequencies)`; `table` is the type of cos and sin."""

    def wrap(compute: Compute) -> Compute:
        def rotate(x, positions, *factors, base, dims, pairing, **scaling):
            known = {name: scaling[name] for name in ("scale", "ramp") if name in scaling}
            freqs = inverse_frequencies(dims, base, *factors[:1], **known)
            turned = rotated(x, change(positions, freqs), pairing, table)
            return turned * x.dtype.type(scaling.get("magnitude", 1.0))

        return rotate

    return wrap


def rotated(x: np.ndarray, angles: np.ndarray, pairing: str, table: Any = None) -> np.ndarray:
    """x [token, head, dim] with its first pairs turned by angles [token, pair], in radians."""
    first, second = pair_slices(2 * angles.shape[1], pairing)
    kept = (part.astype(table or x.dtype) for part in (np.cos(angles), np.sin(angles)))
    cos, sin = (part.astype(x.dtype)[:, None, :] for part in kept)
    out = x.copy()
    out[..., first] = x[..., first] * cos - x[..., second] * sin
    out[..., second] = x[..., first] * sin + x[..., second] * cos
    return out


def recorded_frequencies(case: "Case") -> np.ndarray | None:
    """The frequency of each pair [pair], rad/position, from the rows of ever higher positions.

    The lowest position above 0 gives it exactly while that row was turned by less than pi, the next ones give
    further digits; None where the op's output was not recorded.
    """
    recorded, params = case.recorded(), case.op.params
    if recorded is None:
        return None
    x, positions = case.inputs[:2]
    first, second = pair_slices(params["dims"], params["pairing"])
    turns = (recorded[..., first] + 1j * recorded[..., second]) * (x[..., first] - 1j * x[..., second])
    found = np.zeros(turns.shape[-1])
    for row in np.argsort(positions)[(positions == 0).sum() :]:
        turn = turns[row].sum(0)  # the heads of a pair turn together
        found += np.angle(turn * np.exp(-1j * found * positions[row])) / positions[row]
    return found


def recorded_position(case: "Case", furthest: int) -> int | None:
    """The position below `furthest` that turns the first row's pairs most as they were recorded."""
    recorded = case.recorded()
    if recorded is None:
        return None
    x, params = case.inputs[0][:1], case.op.params
    first, second = pair_slices(params["dims"], params["pairing"])
    row = case.op.compute()
    turn = (recorded[:1, :, first] + 1j * recorded[:1, :, second]).ravel()
    operands = [case.weight(index) for index in range(len(case.op.weights))]
    off = []
    for position in range(furthest):
        made = row(x, np.array([position]), *operands, **params)
        off.append(np.abs((made[..., first] + 1j * made[..., second]).ravel() - turn).sum())
    return int(np.argmin(off))
