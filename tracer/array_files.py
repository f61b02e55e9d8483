"""Files of arrays that are named in somebody's own way: which tensor each of them is.

`--pattern '{name}_{layer}_{step}.npy'` reads it from the file's path below the folder; in files that hold
several arrays the part behind a `:` is for the array's name (`step{step}.npz:{name}.{layer}`).  `{_}` stands
for anything.  What a pattern does not say comes from the name itself (translate.py).  `--map map.toml`:

    engine = "mine"                # all of it optional
    tokens = [1, 2, 3]             # ids by position
    heads = 9
    kv_heads = 3
    tile = 16                      # keys of a tile, for m_tiles and l_tiles
    [names]                        # your name = ours
    query = "q"
    [axes]                         # by your name, slowest first, where they are not in our order
    query = ["head", "token", "dim"]
    [files]                        # single files
    "odd.npy" = { name = "q", layer = 0, step = 1 }
"""

import re
import tomllib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .arrays import storable
from .axes import Heads
from .dump import Dump, Piece
from .errors import UserError
from .importer import Options, header_of
from .translate import Target, translate

_FIELDS = {"name": ".+?", "layer": r"\d{1,5}", "step": r"\d{1,9}", "rank": r"\d{1,5}", "_": ".*?"}
_STEP = re.compile(r"(?:.*[/_.])?(?:step|pass|iter)[=_-]?(\d{1,9})(?:[/_.].*)?", re.IGNORECASE)
_SHOWN = 5  # names in a note


@dataclass(frozen=True)
class Entry:
    """One array of a file; `name` is empty where the file holds just this one."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    load: Callable[[], np.ndarray]


Reader = Callable[[Path], Iterable[Entry]]


def is_source(path: Path, suffix: str) -> bool:
    """Whether `path` is a file of this kind, or a folder of them that no special dumper has named."""
    if path.is_file():
        return path.suffix == suffix
    return path.is_dir() and any(
        "___" not in file.name and "dump_tensor_data" not in file.parts and not file.name.startswith("Pass")
        for file in path.rglob(f"*{suffix}")
    )


def read_files(path: Path, options: Options, suffix: str, reader: Reader) -> Dump:
    """Every array of a file or of the files below a folder."""
    naming = Naming.load(options)
    root = path if path.is_dir() else path.parent
    files = sorted(path.rglob(f"*{suffix}")) if path.is_dir() else [path]
    pieces: list[Piece] = []
    ranks: set[int] = set()
    odd: list[str] = []
    unmatched: list[str] = []
    for file in files:
        place = file.relative_to(root).as_posix()
        for entry in reader(file):
            source = f"{place}:{entry.name}" if entry.name else place
            parts = naming.parts(place, entry.name)
            if _stored_type(entry.dtype) is None:
                odd.append(f"{source} ({entry.dtype})")
                continue
            if parts is None:
                unmatched.append(source)
                continue
            rank = int(parts.get("rank", options.rank or 0))
            if options.rank in (None, rank):
                ranks.add(rank)
                pieces.append(naming.piece(place, entry, source, parts))
    if not pieces and unmatched:
        raise UserError(f"no array of {path} is named as the pattern says: the first is {unmatched[0]}")
    if len(ranks) > 1:
        raise UserError(
            f"{path} is of several processes: choose one with --rank ({_shortened(sorted(ranks))})"
        )
    notes = [
        f"left out {len(names)} arrays {why}: {_shortened(names)}"
        for names, why in (
            (odd, "of a type that no tensor has"),
            (unmatched, "not named as the pattern says"),
        )
        if names
    ]
    return naming.dump(pieces, notes)


def _stored_type(dtype: np.dtype) -> str | None:
    """The name of the type in a trace; None for one that it cannot store."""
    try:
        return storable(np.empty(0, dtype), "").dtype.name
    except UserError:
        return None


def _shortened(names: Sequence[object]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(str, names[:_SHOWN])) + more


def _load(entry: Entry, source: str) -> np.ndarray:
    return storable(entry.load(), source)


@dataclass(frozen=True)
class Naming:
    """What the pattern and the mapping file say."""

    file: re.Pattern[str] | None = None
    entry: re.Pattern[str] | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, options: Options) -> "Naming":
        file, colon, entry = options.pattern.partition(":")
        facts = _read_map(options.map) if options.map else {}
        return cls(_compile(file), _compile(entry) if colon else None, facts)

    def parts(self, place: str, entry: str) -> dict[str, str] | None:
        """What the mapping's entry for the file says, or the pattern; None where the pattern does not fit."""
        special = self.facts.get("files", {}).get(place)
        if special is not None:
            return {key: str(value) for key, value in special.items()}
        if self.file is None:
            return {}
        match = self.file.fullmatch(place)
        if self.entry is not None:
            inner = self.entry.fullmatch(entry)
            return match.groupdict() | inner.groupdict() if match and inner else None
        if match is None and entry:
            match = self.file.fullmatch(entry)
        return match.groupdict() if match else None

    def piece(self, place: str, entry: Entry, source: str, parts: dict[str, str]) -> Piece:
        """The array as a tensor: what `parts` do not say comes from its name."""
        name = parts.get("name") or entry.name or place.rsplit(".", 1)[0].replace("/", ".")
        target = self._target(name, int(parts["layer"]) if "layer" in parts else None)
        stepped = _STEP.fullmatch(place)
        step = int(parts.get("step") or (stepped[1] if stepped else 0))
        load = partial(_load, entry, source)
        return Piece(
            step, target.key, entry.shape, _stored_type(entry.dtype) or "", load, target.axes, source
        )

    def _target(self, name: str, layer: int | None) -> Target:
        ours = self.facts.get("names", {}).get(name)
        target = translate(ours or name, layer)
        axes = self.facts.get("axes", {}).get(name)
        return Target(target.key, tuple(axes)) if axes else target

    def dump(self, pieces: list[Piece], notes: list[str]) -> Dump:
        facts = self.facts
        heads = Heads(facts.get("heads"), facts.get("kv_heads"))
        tokens = tuple(facts.get("tokens", ()))
        return Dump(
            pieces,
            header=header_of(facts, "dump"),
            heads=heads,
            tile=facts.get("tile"),
            notes=notes,
            tokens=tokens,
        )


def _compile(pattern: str) -> re.Pattern[str] | None:
    if not pattern:
        return None
    parts = re.split(r"\{(\w+)\}", pattern)
    text = ""
    for index, part in enumerate(parts):
        if index % 2 == 0:
            text += re.escape(part)
        elif part not in _FIELDS:
            raise UserError(
                f"--pattern has {{{part}}}: one of {', '.join(f'{{{name}}}' for name in _FIELDS)}"
            )
        else:
            text += f"(?:{_FIELDS[part]})" if part == "_" else f"(?P<{part}>{_FIELDS[part]})"
    try:
        return re.compile(text)
    except re.error as error:
        raise UserError(f"--pattern {pattern!r}: {error}") from None


KINDS: dict[str, Callable[[Any], bool]] = {
    "engine": lambda value: isinstance(value, str),
    "tokens": lambda value: isinstance(value, list) and all(type(token) is int for token in value),
    "heads": lambda value: type(value) is int and value > 0,
    "kv_heads": lambda value: type(value) is int and value > 0,
    "tile": lambda value: type(value) is int and value > 0,
    "names": lambda value: isinstance(value, dict) and all(isinstance(v, str) for v in value.values()),
    "axes": lambda value: isinstance(value, dict) and all(map(is_axes, value.values())),
    "files": lambda value: isinstance(value, dict) and all(map(_is_place, value.values())),
}


def is_axes(value: Any) -> bool:
    """Whether it is a list of names."""
    return isinstance(value, list) and bool(value) and all(isinstance(axis, str) for axis in value)


def _is_place(value: Any) -> bool:
    """Whether it is `{ name = "q", layer = 0, step = 1 }` or a part of that."""
    return isinstance(value, dict) and all(
        isinstance(entry, str)
        if key == "name"
        else key in ("layer", "step", "rank") and type(entry) is int and 0 <= entry < 10**9
        for key, entry in value.items()
    )


def check_facts(facts: dict[str, Any], where: Path, kinds: dict[str, Callable[[Any], bool]]) -> None:
    """UserError where a mapping or manifest has an entry that is unknown or of another kind."""
    for key, value in facts.items():
        if key not in kinds:
            raise UserError(f"{where} has an entry {key!r}: known are {', '.join(kinds)}")
        if not kinds[key](value):
            raise UserError(f"{where}: the entry {key!r} is not what it should be: {str(value)[:60]!r}")


def _read_map(path: Path) -> dict[str, Any]:
    try:
        facts = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no TOML file: {error}") from None
    check_facts(facts, path, KINDS)
    return facts
