"""A Hugging Face folder (config.json, safetensors, a tokenizer) as what `trace record` needs of a model.

transformers reads it: only the torch engine runs such a folder, and that has transformers.
"""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

from .errors import MissingExtra, ModelError

# config.json's names of what a GGUF states as `<architecture>.<name>`
_HYPERPARAMETERS = {
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
}

# config.json's model_type of what a GGUF calls otherwise
_ARCHITECTURES = {
    "mistral": "llama",
    "mixtral": "llama",
    "qwen2_moe": "qwen2moe",
    "qwen3_moe": "qwen3moe",
    "gemma3_text": "gemma3",
    "olmo3": "olmo2",
    "gpt_oss": "gpt-oss",
}


class Checkpoint:
    """The facts of a folder: `name`, and in GGUF's names `arch` (config.json's model_type) and `metadata`."""

    sha256 = ""  # of several files, and the format tells no order of them

    def __init__(self, path: Path):
        self.path, self.name = path, path.resolve().name
        config = _read_json(path / "config.json")
        if config is None:
            raise ModelError(f"{path} has no config.json: it is no Hugging Face folder")
        stated = str(config.get("model_type", ""))
        self.arch = _ARCHITECTURES.get(stated, stated)
        known = {ours: config.get(theirs) for theirs, ours in _HYPERPARAMETERS.items()}
        self.metadata: dict[str, Any] = {
            f"{self.arch}.{name}": n for name, n in known.items() if isinstance(n, int)
        }
        self.vocab_size = int(config.get("vocab_size", 0))
        generation = _read_json(path / "generation_config.json") or {}
        stops = generation.get("eos_token_id", config.get("eos_token_id"))
        listed = stops if isinstance(stops, list) else [stops]
        self.stop_ids = frozenset(stop for stop in listed if isinstance(stop, int))

    def tokenizer(self) -> "CheckpointTokenizer":
        """transformers' tokenizer of the folder; one that only knows ids where the folder has none."""
        return CheckpointTokenizer(self)


class CheckpointTokenizer:
    """The tokenizer of a checkpoint, as `tokenizer.Tokenizer` is that of a GGUF."""

    def __init__(self, checkpoint: Checkpoint):
        self.vocab_size, self.stop_ids = checkpoint.vocab_size, checkpoint.stop_ids
        self._path = checkpoint.path
        self._tokenizer = _load(checkpoint.path)

    def encode(self, text: str, *, add_special: bool = True) -> list[int]:
        """Token ids of `text`; ModelError where the folder has no tokenizer."""
        ids: list[int] = self._known().encode(text, add_special_tokens=add_special)
        return ids

    def chat(self, messages: list[dict]) -> str:
        """`messages` in the form of the folder's chat template."""
        try:
            text: str = self._known().apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # a template is a program from the folder
            reason = " ".join(str(error).split())
            raise ModelError(f"{self._path}: the chat template cannot be used: {reason}") from error
        return text

    def piece(self, token_id: int) -> bytes:
        """The text of a token; empty where there is no tokenizer."""
        return b"" if self._tokenizer is None else str(self._tokenizer.decode([token_id])).encode()

    def stream(self) -> "CheckpointStream":
        return CheckpointStream(self)

    def decode(self, ids: list[int]) -> str:
        return "" if self._tokenizer is None else str(self._tokenizer.decode(ids))

    def _known(self) -> Any:
        if self._tokenizer is None:
            raise ModelError(f"{self._path} has no tokenizer.json: give ids by --tokens")
        return self._tokenizer


class CheckpointStream:
    """Tokens to text as they come, holding back what is not yet a whole character."""

    def __init__(self, tokenizer: CheckpointTokenizer):
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._shown = ""

    def push(self, token_id: int) -> str:
        """The text that became complete with this token."""
        self._ids.append(token_id)
        return self._rest(self._tokenizer.decode(self._ids).rstrip("\ufffd"))

    def flush(self) -> str:
        """What is left at the end."""
        return self._rest(self._tokenizer.decode(self._ids))

    def _rest(self, text: str) -> str:
        rest, self._shown = text[len(self._shown) :], max(text, self._shown, key=len)
        return rest


def _read_json(path: Path) -> dict[str, Any] | None:
    """The dictionary in a JSON file; None without the file."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"cannot read {path}: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds no dictionary")
    return content


def _load(path: Path) -> Any:
    """transformers' tokenizer of the folder; None where there is none."""
    if not any((path / name).exists() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        return None
    try:
        transformers = import_module("transformers")
    except ModuleNotFoundError as error:
        raise MissingExtra("transformers", "torch") from error
    try:
        return transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
    except Exception as error:  # the library says in many ways that a file is not as it should be
        reason = " ".join(str(error).split())
        raise ModelError(f"transformers cannot load the tokenizer in {path}: {reason}") from error
