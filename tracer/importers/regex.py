"""Logs of one's own `printf`: a regular expression with named groups says what a line holds.

    Q[3] token 5: 0.12 -3.40 ... 1.07
    --regex '(?P<name>\\w+)\\[(?P<layer>\\d+)\\] token (?P<token>\\d+): (?P<values>.*)'

Groups: `name` and `values`, and where the line has them `layer`, `step`, `token`, `head` and `shape` (10x64).
Each line is taken by itself.  `...` among the values stands for those that were not printed; with `--model`
it is known how many there are, and the first few values of a row find their place.  Without a `step` group a
line that comes again begins the next forward pass.
"""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ..dump import Dump, Piece, StepInfo
from ..errors import UserError
from ..format import Header, TensorSpec
from ..importer import Options
from ..names import NAMES, Key
from ..printed import MAX_ELEMENTS, Malformed, Run, rounding, row
from ..translate import translate

FORMAT = "regex"
SUMMARY = "any log, line by line, with --regex '(?P<name>…)…(?P<values>…)'"

_GROUPS = {"name", "values", "layer", "step", "token", "head", "shape"}
_MAX_INDEX = 1 << 20
Place = tuple[int | None, int | None]  # token, head


@dataclass
class _Tensor:
    """What the lines of one tensor of one step show."""

    name: str
    rows: dict[Place, Run] = field(default_factory=dict)
    shape: tuple[int, ...] | None = None
    rounding: float = 0.0

    @property
    def width(self) -> int:
        """Values of the longest row that was printed."""
        return max(len(run.head) + len(run.tail or ()) for run in self.rows.values())

    @property
    def elided(self) -> bool:
        return any(run.tail is not None for run in self.rows.values())


def sniff(path: Path, head: bytes) -> bool:
    return False  # nothing tells a log of one's own


def read(path: Path, options: Options) -> Dump:
    pattern = _compile(options.regex)
    tensors: dict[tuple[int, Key], _Tensor] = {}
    step, matched = 0, 0
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if match := pattern.search(line):
                matched += 1
                try:
                    step = _take(match.groupdict(), tensors, step)
                except Malformed as error:
                    raise UserError(f"{path} line {number}: {error}") from None
    if not matched:
        raise UserError(f"no line of {path} matches --regex")
    expected = options.expected()
    infos = _steps(tensors)
    pieces = [
        _piece(step, key, found, expected.get(key), infos[step]) for (step, key), found in tensors.items()
    ]
    notes = []
    if options.prompt_tokens is None and not any(info.n_tokens for info in infos.values()):
        notes.append(
            "no group says which token a line is of: positions count from 0; --prompt-tokens N says that the "
            "lines of the first pass are of the last of N tokens"
        )
    return Dump(pieces, infos, Header(engine="log"), notes=notes)


def _compile(text: str) -> re.Pattern[str]:
    if not text:
        raise UserError("--format regex needs --regex with the groups name and values")
    try:
        pattern = re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise UserError(f"--regex is no regular expression: {error}") from None
    groups = set(pattern.groupindex)
    if not {"name", "values"} <= groups or not groups <= _GROUPS:
        known = ", ".join(sorted(_GROUPS))
        raise UserError(f"--regex needs the groups name and values, and can have no other than {known}")
    return pattern


def _take(found: Mapping[str, str | None], tensors: dict[tuple[int, Key], _Tensor], step: int) -> int:
    """Add one line to its tensor; gives its step."""
    name = (found["name"] or "").strip()
    key = translate(name, _index(found.get("layer"))).key
    place = _index(found.get("token")), _index(found.get("head"))
    stated = _index(found.get("step"))
    if stated is not None:
        step = stated
    elif (step, key) in tensors and place in tensors[step, key].rows:
        step += 1
    tensor = tensors.setdefault((step, key), _Tensor(name))
    if place in tensor.rows:
        raise Malformed(f"{key} of step {step} comes twice")
    text = re.sub(r"[\[\]{}()]", " ", found["values"] or "")
    tensor.rows[place] = row(text)
    tensor.rounding = max(tensor.rounding, rounding(text))
    if found.get("shape"):
        tensor.shape = tuple(int(size[:9]) for size in re.findall(r"\d+", found["shape"] or ""))
    return step


def _index(text: str | None) -> int | None:
    if text is None:
        return None
    if not text.strip().isdecimal() or len(text.strip()) > 7 or int(text) > _MAX_INDEX:
        raise Malformed(f"{text[:20]!r} is no index")
    return int(text)


def _steps(tensors: Mapping[tuple[int, Key], _Tensor]) -> dict[int, StepInfo]:
    """The tokens of each step, where lines count them; counted over the whole run or from 0 in each step."""
    seen: dict[int, set[int]] = defaultdict(set)
    for (number, _), tensor in tensors.items():
        seen[number] |= {token for token, _ in tensor.rows if token is not None}
    infos, end = {}, 0
    for number in sorted(seen):
        tokens = seen[number]
        if not tokens:
            infos[number] = StepInfo()
            continue
        first = min(tokens)
        count = max(tokens) - first + 1
        infos[number] = StepInfo(count, first if first >= end else None)
        end = (first if first >= end else end) + count
    return infos


def _piece(step: int, key: Key, tensor: _Tensor, spec: TensorSpec | None, info: StepInfo) -> Piece:
    first = min((token for token, _ in tensor.rows if token is not None), default=0)
    axes, shape = _form(key, tensor, spec, info)
    if prod(shape) > MAX_ELEMENTS:
        raise UserError(f"{key} would have the shape {shape}: too large")
    values = partial(_values, tensor, axes, shape, first)
    conventions: dict[str, Any] = {"rounding": tensor.rounding}
    if tensor.elided or np.isnan(values()).any():
        conventions["partial"] = True
    return Piece(step, key, shape, "float32", values, axes, tensor.name, conventions=conventions)


def _form(
    key: Key, tensor: _Tensor, spec: TensorSpec | None, info: StepInfo
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Axes and shape of a tensor, of which each line is a row of the last axis."""
    tokens, heads = zip(*tensor.rows)
    by_token, by_head = tokens != (None,) * len(tokens), heads != (None,) * len(heads)
    if by_token + by_head == 0:
        return _flat_form(tensor, spec)
    if (by_token and None in tokens) or (by_head and None in heads):
        raise UserError(f"{key}: some lines count its tokens or heads, and others do not")
    known = NAMES[key.name].axes if key.name in NAMES else ("token", "dim")
    sizes = spec.sizes if spec is not None else {}
    last, width = known[-1], sizes.get(known[-1], 0)
    if known[-2:] == ("head", "dim") and not by_head:
        last, width = "head*dim", sizes.get("head", 0) * width
    form = {last: max(width, tensor.width)}
    if by_head:
        form = {"head": max(1 + max(heads), sizes.get("head", 0)), **form}
    if by_token and "query" in known:
        form = {
            axis: {**form, "query": info.n_tokens or 1}[axis]
            for axis in known
            if axis in form or axis == "query"
        }
    elif by_token:
        form = {"token": info.n_tokens or 1, **form}
    return tuple(form), tuple(form.values())


def _flat_form(tensor: _Tensor, spec: TensorSpec | None) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Of a tensor that one line holds: as the line says, or as many rows of the model's size as it fills."""
    if tensor.shape is not None:
        return (), tensor.shape
    if spec is None or not spec.joined:
        return (), (tensor.width,)
    rows = 1 if tensor.elided else -(-tensor.width // prod(spec.shape(1, 1)))
    return spec.axes, spec.shape(max(rows, 1), 1)


def _values(tensor: _Tensor, axes: tuple[str, ...], shape: tuple[int, ...], first: int) -> np.ndarray:
    """The printed values at their places, NaN in between."""
    array = np.full(shape, np.nan, np.float32)
    for (token, head), run in tensor.rows.items():
        at = {"token": (token or 0) - first, "query": (token or 0) - first, "head": head}
        place = tuple(at[axis] for axis in axes[:-1]) if (token, head) != (None, None) else ()
        _put(run, array[place] if place else array.reshape(-1))
    return array


def _put(run: Run, target: np.ndarray) -> None:
    head, tail = run.head, run.tail or []
    if len(head) + len(tail) > target.size:
        raise UserError(f"{len(head) + len(tail)} values were printed where {target.size} are expected")
    target[: len(head)] = head
    target[target.size - len(tail) :] = tail
