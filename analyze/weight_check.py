"""What an engine loaded, against the GGUF: equal, or wrong in a way that has a name.

Each mistake (weight_mistakes.py) is made with the file's weight, and the one that reproduces the dump is the
answer; then the other tensors of the model are tried.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..tracer.errors import UserError
from ..tracer.gguf import Model
from .weight_mistakes import mistakes

SAME = 4e-3  # NRMSE up to which two weights are the same: bfloat16 rounds to 2e-3
EXACT = 1e-6
FEWEST = 4  # values that tell anything
_PROBE = 256  # values by which another tensor is recognised before all of it is compared


@dataclass(frozen=True)
class Verdict:
    """What became of one weight.  `kind` is stable; `nrmse` is that of the plain comparison with `tensor`,
    `explained` what is left of it under the explanation (as large where there is none)."""

    name: str
    tensor: str
    kind: str
    message: str
    nrmse: float
    explained: float
    values: int

    @property
    def is_right(self) -> bool:
        return self.kind == "equal"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def check_weight(model: Model, tensor: str, dump: np.ndarray, name: str = "") -> Verdict:
    """Compare `dump`, the whole weight or its first values in memory order, with the tensor of the GGUF.

    UserError where the dump has too few or too many values.
    """
    values = np.asarray(dump, np.float64).reshape(-1)
    weight = model.weight(tensor)
    if not FEWEST <= values.size <= weight.size:
        raise UserError(f"{name or 'the dump'} has {values.size} values, {tensor} has {weight.size}")
    plain = _distance(values, weight)

    def verdict(kind: str, message: str, explained: float = plain) -> Verdict:
        return Verdict(name or tensor, tensor, kind, message, plain, explained, values.size)

    if not np.isfinite(values).all():
        return verdict("not_finite", "holds NaN or infinity")
    if not values.any() and weight.any():
        return verdict("zeros", "is all zero: it was not loaded")
    if plain <= SAME:
        return verdict("equal", _equal(model, tensor, dump, plain))
    for mistake in mistakes(model, tensor, weight):
        explained = _distance(values, mistake.make())
        if explained <= SAME:
            return verdict(mistake.kind, mistake.message, explained)
    for other, explained in find_tensor(model, values, but=tensor):
        return verdict(*_other(tensor, other), explained)
    if found := _affine(values, weight):
        return verdict(*found)
    return verdict("unknown", f"differs from {tensor} in a way that none of the known mistakes explains")


def find_tensor(model: Model, dump: np.ndarray, but: str = "") -> Iterator[tuple[str, float]]:
    """The tensors of the model that hold the values of `dump`, with the NRMSE of each."""
    values = np.asarray(dump, np.float64).reshape(-1)
    for tensor in model.names:
        size = int(np.prod(model.shape(tensor)))
        if tensor == but or size < values.size or (values.size > _PROBE and size != values.size):
            continue
        if _distance(values[:_PROBE], _first(model, tensor, _PROBE)) <= SAME:
            explained = _distance(values, model.weight(tensor))
            if explained <= SAME:
                yield tensor, explained


def _first(model: Model, tensor: str, count: int) -> np.ndarray:
    shape = model.shape(tensor)
    if len(shape) != 2:
        return model.weight(tensor)
    return model.rows(tensor, np.arange(min(-(-count // shape[1]), shape[0])))


def _distance(values: np.ndarray, weight: np.ndarray) -> float:
    """NRMSE of the values against as many of the weight; infinite where either is not finite."""
    true = weight.reshape(-1)[: values.size].astype(np.float64)
    given = values[: true.size]
    if not (np.isfinite(given).all() and np.isfinite(true).all()):
        return float("inf")
    return float(np.linalg.norm(given - true) / (np.linalg.norm(true) or 1.0))


def _equal(model: Model, tensor: str, dump: np.ndarray, distance: float) -> str:
    shape = model.shape(tensor)
    how = "equal" if distance <= EXACT else f"equal but for rounding (NRMSE {distance:.1e})"
    if dump.ndim > 1 and dump.shape != shape and dump.shape == shape[::-1]:
        return f"{how}; its shape is stated first axis fastest, as ggml does"
    return how


def _other(tensor: str, other: str) -> tuple[str, str]:
    """Kind and message for a dump that is another tensor."""
    (layer, role), (other_layer, other_role) = _split(tensor), _split(other)
    if role == other_role:
        return "other_layer", f"is {other}: layer {other_layer} instead of {layer}"
    return "other_tensor", f"is {other}, not {tensor}"


def _split(tensor: str) -> tuple[str, str]:
    """`blk.3.attn_q.weight` -> (3, attn_q.weight)."""
    parts = tensor.split(".", 2)
    return (parts[1], parts[2]) if parts[0] == "blk" and len(parts) == 3 else ("", tensor)


def _affine(values: np.ndarray, weight: np.ndarray, block: int = 32) -> tuple[str, str, float] | None:
    """A scale and an offset for each block of the dump that make it the weight."""
    count = values.size // block
    if not count:
        return None
    given = values[: count * block].reshape(count, block)
    true = weight.reshape(-1)[: count * block].astype(np.float64).reshape(count, block)
    centred = true - true.mean(1, keepdims=True)
    power = (centred**2).sum(1)
    slope = (centred * given).sum(1) / np.where(power, power, 1.0)
    offset = given.mean(1) - slope * true.mean(1)
    fitted = slope[:, None] * true + offset[:, None]
    explained = float(np.linalg.norm(given - fitted) / (np.linalg.norm(given) or 1.0))
    if explained > SAME:
        return None
    typical = float(np.sqrt((true**2).mean()))
    scaled, shifted = float(np.median(slope)), float(np.median(np.abs(offset))) / (typical or 1.0)
    if np.ptp(slope) <= SAME * abs(scaled) and shifted <= SAME:
        return "scaled", f"is {scaled:.6g} times what it should be", explained
    if np.abs(slope - 1).max() <= 1e-2:
        return "shifted", f"is off by a constant in each block of {block}: a minimum or zero point", explained
    return (
        "rescaled",
        f"has another scale in each block of {block}: scales misread or paired wrongly",
        explained,
    )


def check_all(model: Model, dumps: Iterable[tuple[str, np.ndarray]], tensor: str = "") -> list[Verdict]:
    """Verdicts on dumped weights by name, the GGUF's or that of the original checkpoint.

    One whose name says nothing is looked for by its values.  With `tensor` only the one of that name is
    checked; where none has it, each is meant to be that tensor.  UserError where nothing could be compared.
    """
    meant = [(name, tensor or _meant(model, name), values) for name, values in dumps]
    if tensor:
        meant = [entry for entry in meant if _meant(model, entry[0]) == tensor] or meant
    if not meant:
        raise UserError("the dump holds no array to compare")
    return [
        check_weight(model, target, values, name) if target else _by_values(model, name, values)
        for name, target, values in meant
    ]


def _by_values(model: Model, name: str, values: np.ndarray) -> Verdict:
    found, explained = next(find_tensor(model, values), ("", float("inf")))
    kind, message = ("equal", f"equal to {found}") if found else ("unknown", "is no tensor of this model")
    return Verdict(name, found, kind, message, explained, explained, values.size)


def _meant(model: Model, name: str) -> str:
    """The GGUF's name of a tensor that may be called as in the original checkpoint; empty if unknown."""
    from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map

    if name in model:
        return name
    if f"{name}.weight" in model:
        return f"{name}.weight"
    kinds = {text: kind for kind, text in MODEL_ARCH_NAMES.items()}
    kind: MODEL_ARCH | None = kinds.get(model.arch)
    layers = model.hparam("block_count", 0)
    if kind is None or not isinstance(layers, int):
        return ""
    found = get_tensor_name_map(kind, layers).get_name(name, (".weight", ".bias"))
    return found if found and found in model else ""
