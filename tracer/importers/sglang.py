"""Folders of SGLang's two dumpers (`python/sglang/srt/debug_utils/`); needs the torch extra.

`dumper.py`: a file for each tensor, `step=0___rank=0___dump_index=7___name=q___layer_id=3.pt`, which holds
{"value", "meta"} (earlier versions: `forward_pass_id` for `step`, and the tensor itself).
`tensor_dump_forward_hook.py`: `TP0_PP0_Rank0_pid123/Pass00000.pt`, a dictionary of module outputs.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..arrays import to_numpy
from ..dump import Dump, Piece, StepInfo
from ..errors import UserError
from ..format import Header
from ..importer import Options
from ..names import Key
from ..translate import Target, own_key, translate_all
from .pt import load_tensor, tensors

FORMAT = "sglang"
SUMMARY = "folder of SGLang's dumper or --debug-tensor-dump-output-folder (needs the torch extra)"

_PASS = re.compile(r"Pass(\d{1,9})\.pt")
_RANK = re.compile(r"TP\d+_PP\d+_Rank(\d{1,5})_pid\d+")
_NO_TENSOR_OF_THE_RUN = ("grad__", "param__")  # gradients and weights


@dataclass(frozen=True)
class _Item:
    """One tensor of a dump: `entry` is its path inside the file."""

    step: int
    rank: int
    name: str
    layer: int | None
    file: Path
    entry: str


def sniff(path: Path, head: bytes) -> bool:
    return path.is_dir() and any(
        "___name=" in file.name or (_PASS.fullmatch(file.name) and _RANK.fullmatch(file.parent.name))
        for file in path.rglob("*.pt")
    )


def read(path: Path, options: Options) -> Dump:
    found = {file: [*_tagged(file), *_pass(file)] for file in sorted(path.rglob("*.pt"))}
    if not any(found.values()):
        raise UserError(f"{path} has no tensor that an SGLang dumper would have written")
    empty = sum(1 for items in found.values() if not items)
    notes = [f"left out {empty} files of gradients, parameters, or without a tensor"] if empty else []
    items = _of_rank(path, [item for items in found.values() for item in items], options.rank)
    folders = sorted({item.file.parent.name for item in items})
    if len(folders) > 1:
        raise UserError(f"{path} holds several dumps, name one of them: {', '.join(folders[:5])}")
    return _dump(items, notes)


def _tagged(file: Path) -> Iterator[_Item]:
    """The tensor of a file that is named by tags."""
    if "___" not in file.stem:
        return
    tags = dict(part.split("=", 1) for part in file.stem.split("___") if "=" in part)
    step = tags.get("step", tags.get("forward_pass_id", ""))
    layer, rank = tags.get("layer_id", ""), tags.get("rank", "0")
    if "name" not in tags or not all(
        text.isdecimal() and len(text) < 10 for text in (step, rank, layer or "0")
    ):
        raise UserError(f"{file} is not named as an SGLang dumper does: step=…___rank=…___name=….pt")
    if not tags["name"].startswith(_NO_TENSOR_OF_THE_RUN):
        for entry in tensors(file):
            if entry in ("", "value"):
                number = int(layer) if layer else None
                yield _Item(int(step), int(rank), tags["name"], number, file, entry)


def _pass(file: Path) -> Iterator[_Item]:
    """The tensors of a file that holds a whole forward pass."""
    match, rank = _PASS.fullmatch(file.name), _RANK.fullmatch(file.parent.name)
    if not match or not rank:
        return
    for entry in tensors(file):
        # a file is written at the end of `model`: what comes behind that is in the next one
        step = int(match[1]) - (not entry.startswith("model."))
        if step >= 0:
            yield _Item(step, int(rank[1]), entry, None, file, entry)


def _of_rank(path: Path, items: list[_Item], wanted: int | None) -> list[_Item]:
    ranks = sorted({item.rank for item in items})
    if wanted is None and len(ranks) > 1:
        raise UserError(f"{path} is of {len(ranks)} ranks: choose one of {ranks[:9]} with --rank")
    chosen = [item for item in items if item.rank == (ranks[0] if wanted is None else wanted)]
    if not chosen:
        raise UserError(f"{path} has no rank {wanted}: it has {ranks[:9]}")
    return sorted(chosen, key=lambda item: item.step)


def _dump(items: list[_Item], notes: list[str]) -> Dump:
    names = {item: re.sub(r"^non_intrusive__|\.0$", "", item.name) for item in items}
    targets = translate_all(names.values())
    pieces: list[Piece] = []
    steps: dict[int, StepInfo] = {}
    count: dict[tuple[int, Key], int] = {}
    for item in items:
        last = names[item].rsplit(".", 1)[-1]
        if last in ("input_ids", "positions"):
            steps[item.step] = _inputs(steps.get(item.step, StepInfo()), last, item)
            continue
        if last == "seq_lens":
            continue
        target = _target(targets[names[item]], item.layer)
        number = count[item.step, target.key] = count.get((item.step, target.key), 0) + 1
        if number > 1:  # dumped again in the same pass
            target = Target(own_key(target.key.layer, f"{target.key.name}#{number}"))
        pieces.append(_piece(item, target))
    return Dump(pieces, steps, Header(engine="sglang"), notes=notes)


def _target(target: Target, layer: int | None) -> Target:
    if layer is None or target.key.layer is not None:
        return target
    return Target(Key(layer, target.key.name), target.axes)


def _piece(item: _Item, target: Target) -> Piece:
    array = to_numpy(tensors(item.file)[item.entry], str(item.file))
    load = partial(load_tensor, item.file, item.entry)
    return Piece(item.step, target.key, array.shape, array.dtype.name, load, target.axes, item.name)


def _inputs(info: StepInfo, name: str, item: _Item) -> StepInfo:
    """What a step was fed: ids, and positions, which must be those of one sequence."""
    values: Iterable[int] = load_tensor(item.file, item.entry).reshape(-1).tolist()
    numbers = tuple(int(value) for value in values)
    if name == "input_ids":
        return StepInfo(len(numbers) or None, info.start, numbers)
    if numbers and numbers != tuple(range(numbers[0], numbers[0] + len(numbers))):
        raise UserError(
            f"pass {item.step} of {item.file.parent} computes several sequences at once: dump one request "
            "at a time (and import its passes with --steps)"
        )
    return StepInfo(info.n_tokens, numbers[0] if numbers else None, info.tokens)
