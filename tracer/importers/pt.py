"""PyTorch `.pt`: a file, or a folder of them; a tensor, or dictionaries and lists of tensors.

Loaded with `weights_only=True`: nothing in the file is executed.
"""

import zipfile
from collections.abc import Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from ..array_files import Entry, is_source, read_files
from ..arrays import to_numpy
from ..dump import Dump
from ..errors import MissingExtra, UserError
from ..importer import Options

FORMAT = "pt"
SUMMARY = "PyTorch .pt, a file or a folder (needs the torch extra)"

_MAX_DEPTH = 8


def sniff(path: Path, head: bytes) -> bool:
    return is_source(path, ".pt") or (path.is_file() and path.suffix == ".pth")


def read(path: Path, options: Options) -> Dump:
    return read_files(path, options, ".pt", entries)


def entries(path: Path) -> Iterator[Entry]:
    for name, tensor in tensors(path).items():
        array = to_numpy(tensor, f"{path}:{name}" if name else str(path))
        yield Entry(name, array.shape, array.dtype, partial(load_tensor, path, name))


@lru_cache(maxsize=1)
def tensors(path: Path) -> dict[str, Any]:
    """Every tensor in a file by its path through dictionaries and lists (empty for a file that is one)."""
    return dict(_flatten(_load(path)))


def load_tensor(path: Path, name: str) -> np.ndarray:
    """One of them; UserError where there is none of this name."""
    if name not in tensors(path):
        raise UserError(f"{path} holds no tensor" + (f" called {name}" if name else ", or more than one"))
    return to_numpy(tensors(path)[name], f"{path}:{name}")


def _load(path: Path) -> Any:
    """What a file holds; UserError where it is damaged or would execute something."""
    try:
        import torch
    except ImportError:
        raise MissingExtra("torch", "torch") from None
    try:
        # mapped, so that only what is used is read; files from before 2020 are no archives
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    # torch documents no errors; what a damaged archive or pickle raises are these and their subclasses
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{path} cannot be loaded without executing code, or is damaged: {reason}") from error


def _flatten(value: Any, name: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Every tensor in nested dictionaries and lists; what is no tensor is passed over."""
    import torch

    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, (dict, list, tuple)) and depth < _MAX_DEPTH:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from _flatten(item, f"{name}.{key}" if name else str(key), depth + 1)
