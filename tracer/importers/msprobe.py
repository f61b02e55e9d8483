"""Dump folders of msprobe (Ascend's PrecisionDebugger, task `tensor`), also of vLLM-Ascend and SGLang.

`[dump/]step0/rank0/dump_tensor_data/Module.model.layers.0.self_attn.q_proj.Linear.forward.0.output.0.pt`
(`docs/en/dump/pytorch_data_dump_instruct.md` there); `rank`, or `proc123` outside a distributed run; `.npy`
where MindSpore wrote it.  Outputs of modules and of API calls are taken, and the inputs of output and down
projections; parameters, gradients and backward passes are not part of a run.
"""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from ..arrays import storable
from ..dump import Dump, Piece
from ..errors import UserError
from ..format import Header
from ..importer import Options
from ..translate import Target, own_key, translate_all
from . import npy, pt

FORMAT = "msprobe"
SUMMARY = "dump folder of msprobe (.pt needs the torch extra)"

_FOLDER = "dump_tensor_data"
_STEP, _RANK = re.compile(r"step(\d{1,9})"), re.compile(r"(?:rank|proc)(\d{1,9})")
_MODULE = re.compile(
    r"(?:Module|Cell)\.(?P<path>.+)\.\w+\.forward\.(?P<call>\d+)\.(?P<side>input|output)\.(?P<place>[\d.]+)"
)
_API = re.compile(r"(?P<path>\w+\.\w+\.\d+)\.forward\.(?P<side>input|output)\.(?P<place>[\d.]+)")
_INPUTS = (".o_proj", ".down_proj")  # whose input is a tensor that no other module gives


def sniff(path: Path, head: bytes) -> bool:
    return path.is_dir() and (path.name == _FOLDER or next(path.rglob(_FOLDER), None) is not None)


def read(path: Path, options: Options) -> Dump:
    folders = [path] if path.name == _FOLDER else sorted(path.rglob(_FOLDER))
    ranks = sorted({_number(_RANK, folder) for folder in folders})
    if options.rank is None and len(ranks) > 1:
        raise UserError(f"{path} is of {len(ranks)} ranks: choose one of {ranks[:9]} with --rank")
    chosen = [folder for folder in folders if options.rank in (None, _number(_RANK, folder))]
    found = [(folder, *entry) for folder in chosen for entry in _tensors(folder)]
    if not found:
        raise UserError(f"{path} has no dumped outputs of modules: was the task `tensor` and the level L0?")
    targets = translate_all(name for _, name, _, _ in found)
    pieces = [
        _piece(_number(_STEP, folder), _again(targets[name], call), file)
        for folder, name, call, file in found
    ]
    skipped = sum(1 for folder in chosen for _ in _files(folder)) - len(pieces)
    notes = [f"left out {skipped} inputs, parameters and gradients"] if skipped else []
    return Dump(pieces, header=Header(engine="msprobe"), notes=notes)


def _number(pattern: re.Pattern[str], folder: Path) -> int:
    """The step or rank that a folder belongs to, 0 where its path names none."""
    for part in reversed(folder.parts):
        if match := pattern.fullmatch(part):
            return int(match[1])
    return 0


def _files(folder: Path) -> Iterator[Path]:
    return (file for file in sorted(folder.iterdir()) if file.suffix in (".pt", ".npy"))


def _tensors(folder: Path) -> Iterator[tuple[str, int, Path]]:
    """Name, number of the call and file of every tensor that belongs to the run."""
    for file in _files(folder):
        stem = file.name.removesuffix(file.suffix)
        if match := _MODULE.fullmatch(stem):
            wanted = match["side"] == "output" or match["path"].endswith(_INPUTS)
            if wanted and match["place"] == "0":
                side = "" if match["side"] == "output" else ".input"
                yield match["path"] + side, int(match["call"][:9]), file
        elif (match := _API.fullmatch(stem)) and match["side"] == "output" and match["place"] == "0":
            yield match["path"], 0, file


def _again(target: Target, call: int) -> Target:
    """A module that is called several times in a step gives several tensors."""
    return Target(own_key(target.key.layer, f"{target.key.name}#{call + 1}")) if call else target


def _piece(step: int, target: Target, file: Path) -> Piece:
    load = partial(_load, file)
    array = load()  # mapped, so that its shape costs no reading
    return Piece(step, target.key, array.shape, array.dtype.name, load, target.axes, file.name)


def _load(file: Path) -> np.ndarray:
    if file.suffix == ".pt":
        return pt.load_tensor(file, "")
    (entry,) = npy.entries(file)
    return storable(entry.load(), str(file))
