"""What to record: the --layers, --tensors, --token-range and --phase options."""

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass

from .errors import UserError
from .format import Step
from .names import Key


def parse_ranges(text: str, what: str) -> list[range]:
    """`0-3,10,20-` as ranges (an open end reaches to infinity, here 2**31)."""
    ranges = []
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (last and not last.isdecimal()):
            raise UserError(f"{what} {text!r} is not a list of numbers and ranges such as 0-3,10")
        end = int(first) if not dash else int(last) if last else 2**31
        if end < int(first):
            raise UserError(f"{what} {part!r} runs backwards")
        ranges.append(range(int(first), end + 1))
    if not ranges:
        raise UserError(f"{what} is empty: give numbers and ranges such as 0-3,10")
    return ranges


@dataclass(frozen=True)
class Selection:
    """A choice of layers, tensor globs, tokens and phase; None means all."""

    layers: str | None = None
    tensors: str | None = None
    tokens: str | None = None
    phase: str | None = None

    def keys(self, available: Iterable[Key]) -> list[Key]:
        """The chosen keys; UserError where a layer or glob matches nothing at all."""
        keys = list(available)
        if self.layers is not None:
            chosen = parse_ranges(self.layers, "--layers")
            keys = [k for k in keys if k.layer is None or any(k.layer in r for r in chosen)]
            if not any(k.layer is not None for k in keys):
                raise UserError(f"--layers {self.layers} matches no layer of this model")
        if self.tensors is not None:
            globs = [g.strip() for g in self.tensors.split(",") if g.strip()]
            if not globs:
                raise UserError("--tensors is empty: give names or globs such as q*,scores")
            names = sorted({k.name for k in keys})
            for glob in globs:
                if not fnmatch.filter(names, glob):
                    raise UserError(f"--tensors {glob!r} matches none of: {', '.join(names)}")
            keys = [k for k in keys if any(fnmatch.fnmatch(k.name, g) for g in globs)]
        return keys

    def token_indices(self, steps: list[Step]) -> list[int] | None:
        """Indices of the tokens to record, None for all."""
        if self.tokens is None and self.phase is None:
            return None
        if self.phase not in (None, "prefill", "decode"):
            raise UserError(f"--phase {self.phase!r}: prefill or decode")
        chosen = [range(2**31)] if self.tokens is None else parse_ranges(self.tokens, "--token-range")
        indices = [
            token
            for step in steps
            if self.phase in (None, step.phase)
            for token in range(step.start, step.kv_len)
            if any(token in r for r in chosen)
        ]
        if not indices:
            raise UserError(f"no token of this run is selected (it has {steps[-1].kv_len})")
        return indices
