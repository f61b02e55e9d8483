"""What `trace record` feeds: the model with its tokenizer, and the prompt as ids."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, Union

from ..errors import UserError

if TYPE_CHECKING:
    from ..checkpoint import Checkpoint, CheckpointTokenizer
    from ..gguf import Model
    from ..record import Engine
    from ..tokenizer import Tokenizer

    AnyTokenizer: TypeAlias = Union[Tokenizer, CheckpointTokenizer]  # noqa: UP007


def open_model(
    name: str | None, engine: str, memory: int | None = None
) -> "tuple[Model | Checkpoint, AnyTokenizer]":
    """A GGUF, or for torch a Hugging Face folder; `memory` is the budget of dequantised weights."""
    if name and Path(name).expanduser().is_dir():
        from ..checkpoint import Checkpoint

        if engine != "torch":
            raise UserError(f"{name} is a folder: only --engine torch runs one, the others want a GGUF file")
        folder = Checkpoint(Path(name).expanduser())
        return folder, folder.tokenizer()
    from ..gguf import Model
    from ..hub import resolve
    from ..tokenizer import Tokenizer

    model = Model(resolve(name), memory=memory)
    return model, Tokenizer(model.metadata)


def tokenized_otherwise(engine: "Engine", text: str, ids: Sequence[int], *, chat: bool) -> str:
    """Where the engine's own tokenizer makes other ids of the text, in a sentence; empty where it agrees."""
    compare = getattr(engine, "prompt_difference", None)
    return compare(text, ids, add_special=not chat) if compare else ""


def read_prompt(
    tokenizer: "AnyTokenizer", prompt: str | None, prompt_file: Path | None, tokens: str | None, chat: bool
) -> tuple[str, list[int]]:
    """The text (as fed) and its ids, from whichever of the three options was given."""
    if sum(given is not None for given in (prompt, prompt_file, tokens)) != 1:
        raise UserError("give the prompt by exactly one of -p TEXT, --prompt-file FILE, --tokens 1,2,3")
    if tokens is not None:
        return "", _ids(tokens, tokenizer.vocab_size)
    text = _read(prompt_file) if prompt_file is not None else str(prompt)
    if chat:
        text = tokenizer.chat([{"role": "user", "content": text}])
        # the template writes the special tokens itself; a second BOS would be the classic bug
        return text, tokenizer.encode(text, add_special=False)
    return text, tokenizer.encode(text)


def _read(path: Path) -> str:
    try:
        return sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the prompt from {path}: {error}") from error


def _ids(tokens: str, vocab: int) -> list[int]:
    try:
        ids = [int(part) for part in tokens.replace(",", " ").split()]
    except ValueError:
        raise UserError(f"--tokens {tokens!r}: give ids such as 1,2,3") from None
    bad = [token for token in ids if not 0 <= token < vocab]
    if bad:
        raise UserError(f"--tokens: {bad[0]} is outside the vocabulary (0 to {vocab - 1})")
    return ids
