"""The trace file format: what is stored where (docs/format.md states it in MUST/MAY)."""

import json
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from typing import Any

import h5py
import ml_dtypes
import numpy as np

from .names import Key

FORMAT = "tensortrace"
VERSION = (1, 0)

ROW_AXES = ("token", "query")  # the axes that count the tokens of a step


@dataclass(frozen=True)
class Header:
    """What a run was: stored as root attributes, one each; dictionaries as JSON."""

    engine: str
    engine_version: str = ""
    model_name: str = ""
    model_sha256: str = ""
    architecture: str = ""
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    prompt: str = ""
    sampling: dict[str, Any] = field(default_factory=dict)
    compute_dtype: str = "float32"
    storage_dtype: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    injected: str = ""
    host: str = ""
    device: str = "cpu"
    created: str = ""
    tool_version: str = ""

    def to_attributes(self) -> dict[str, str]:
        return {
            name: json.dumps(value) if isinstance(value, dict) else value
            for name, value in asdict(self).items()
        }

    @classmethod
    def from_attributes(cls, attributes: dict[str, str]) -> "Header":
        known: dict[str, Any] = {}
        for entry in fields(cls):
            value = attributes.get(entry.name, "")
            known[entry.name] = json.loads(value or "{}") if entry.type == dict[str, Any] else value
        return cls(**known)


@dataclass(frozen=True)
class Step:
    """One forward pass: `n_tokens` tokens from position index `start` on, seeing `kv_len` keys."""

    index: int
    phase: str  # "prefill" or "decode"
    start: int
    n_tokens: int

    @property
    def kv_len(self) -> int:
        return self.start + self.n_tokens


def plan_steps(n_prompt: int, n_new: int, chunk: int | None = None) -> list[Step]:
    """The steps of a run that feeds `n_prompt` tokens (in chunks) and generates `n_new`.

    The last generated token is not fed back, so there are n_new - 1 decode steps.
    """
    size = chunk or n_prompt
    starts = range(0, n_prompt, size)
    steps = [Step(i, "prefill", s, min(size, n_prompt - s)) for i, s in enumerate(starts)]
    for position in range(n_prompt, n_prompt + max(n_new - 1, 0)):
        steps.append(Step(len(steps), "decode", position, 1))
    return steps


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a trace: axes by name, sizes of the axes that don't change from step to step."""

    key: Key
    axes: tuple[str, ...]
    sizes: dict[str, int]
    dtype: str = "float32"
    op: str = ""
    inputs: tuple[Key, ...] = ()  # the tensors that the op reads, where known
    source: str = ""  # the engine's own name of it
    conventions: dict[str, Any] = field(default_factory=dict)

    @property
    def joined(self) -> bool:
        """True where all steps lie in one dataset, token axis first."""
        return self.axes[0] == "token"

    def shape(self, rows: int, keys: int) -> tuple[int, ...]:
        """Its shape in a step of `rows` recorded tokens that see `keys` keys."""
        sizes = {**self.sizes, **dict.fromkeys(ROW_AXES, rows), "key": keys}
        if "tile" in self.sizes:
            sizes["tile"] = -(-keys // self.sizes["tile"])
        return tuple([sizes[axis] for axis in self.axes])

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _SPEC_FIELDS}

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> "TensorSpec":
        known = {name: entry[name] for name in _SPEC_FIELDS if name in entry}  # a newer minor may say more
        known["key"], known["axes"] = Key(*known["key"]), tuple(known["axes"])
        known["inputs"] = tuple(Key(*key) for key in known.get("inputs", ()))
        spec = cls(**known)
        spec.check()
        return spec

    def check(self) -> None:
        """ValueError where this cannot be the description of a tensor."""
        layer, name = self.key
        if not name or not isinstance(name, str) or not (layer is None or _is_count(layer)):
            raise ValueError(f"the catalog has a tensor called {list(self.key)}")
        fixed = [axis for axis in self.axes if axis not in (*ROW_AXES, "key")]
        if not self.axes or not all(_is_count(self.sizes.get(axis)) and self.sizes[axis] for axis in fixed):
            raise ValueError(f"the catalog gives {self.key} the axes {self.axes} and sizes {self.sizes}")
        if self.joined and {"query", "key", "tile"} & set(self.axes):
            raise ValueError(f"the catalog gives {self.key} the axes {self.axes}: steps cannot be joined so")
        numpy_dtype(self.dtype)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**40


_SPEC_FIELDS = tuple(entry.name for entry in fields(TensorSpec))


# HDF5 has no class for these: a floating-point type with the right bit fields is one.  Size in bytes; in bits
# the precision, the sign's place, the exponent's place and size, the mantissa's place and size; the bias.
_FLOATS = {
    "bfloat16": (2, 16, 15, 7, 8, 0, 7, 127),
    "float8_e4m3fn": (1, 8, 7, 3, 4, 0, 3, 7),
    "float8_e5m2": (1, 8, 7, 2, 5, 0, 2, 15),
}
_INTEGERS = tuple(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64))
_NUMBERS = ("float16", "float32", "float64", *_INTEGERS)


@cache
def numpy_dtype(name: str) -> np.dtype:
    """The NumPy dtype of a stored type's name; bfloat16 and float8 come from ml_dtypes."""
    if name in _FLOATS:
        return np.dtype(getattr(ml_dtypes, name))
    if name not in _NUMBERS:
        raise ValueError(f"no tensor is stored as {name!r}: one of {', '.join((*_NUMBERS, *_FLOATS))}")
    return np.dtype(name)


@cache
def h5_type(name: str) -> h5py.h5t.TypeID:
    """The HDF5 type in which `name` shows as numbers in any HDF5 tool."""
    if name not in _FLOATS:
        return h5py.h5t.py_create(np.dtype(name).newbyteorder("<"), logical=True)
    size, precision, sign, exp_at, exp_size, man_at, man_size, bias = _FLOATS[name]
    kind = h5py.h5t.IEEE_F16LE.copy()
    # fields may never reach outside the precision, so the larger is set first
    kind.set_fields(sign, exp_at, exp_size, man_at, man_size)
    kind.set_precision(precision)
    kind.set_size(size)
    kind.set_ebias(bias)
    return kind


def h5_text(text: str) -> np.ndarray:
    """`text` as a UTF-8 string of its own length.

    HDF5's variable-length strings cannot hold a NUL, and a damaged one crashes the process that reads it.
    """
    data = text.encode("utf-8", "backslashreplace")
    return np.array(data, h5py.string_dtype("utf-8", max(len(data), 1)))


def read_text(stored: object) -> str:
    """A string of any kind that HDF5 has."""
    return stored.decode("utf-8", "replace") if isinstance(stored, bytes) else str(stored)
