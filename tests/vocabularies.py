"""Vocabularies as GGUF metadata for the tests of the tokenizer, and texts with ids that references gave."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ggufs import MERGES, vocabulary
from tensortrace.tracer.tokenizer import TokenType

GOLDEN = json.loads((Path(__file__).parent / "golden" / "tokenizer_smollm2.json").read_text())
CASES = [*GOLDEN["cases"], *GOLDEN["across_lost_bytes"]]
TEXTS = [text for text, _ in CASES]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": 'Grüße, <|im_end|> & "x" \n'},
    {"role": "assistant", "content": "Ok."},
    {"role": "user", "content": "2 + 2?"},
]


def keys(**values: Any) -> dict[str, Any]:
    return {f"tokenizer.ggml.{name}": value for name, value in values.items()}


def byte_level(**values: Any) -> dict[str, Any]:
    """300 tokens; its last three are special by their text, though the types do not say so."""
    return keys(model="gpt2", pre="gpt-2", tokens=vocabulary(), merges=MERGES, eos_token_id=297) | values


def sentencepiece(*tokens: tuple[str, float], **values: Any) -> dict[str, Any]:
    """<unk> <s> </s> as 0 1 2, the bytes from 3 on, then `tokens` with their scores from 259 on."""
    names = ["<unk>", "<s>", "</s>", *BYTES, *(token for token, _ in tokens)]
    types = [TokenType.UNKNOWN, *[TokenType.CONTROL] * 2, *[TokenType.BYTE] * 256]
    return keys(
        model="llama",
        tokens=names,
        scores=[0.0] * 259 + [score for _, score in tokens],
        token_type=[int(kind) for kind in types] + [1] * len(tokens),
    ) | keys(**values)


def unigram(*tokens: tuple[str, float], **values: Any) -> dict[str, Any]:
    """<pad> </s> <unk> as 0 1 2, then `tokens` with their scores from 3 on."""
    return keys(
        model="t5",
        tokens=["<pad>", "</s>", "<unk>", *(token for token, _ in tokens)],
        scores=[0.0] * 3 + [score for _, score in tokens],
        token_type=[3, 3, 2] + [1] * len(tokens),
    ) | keys(**values)


def charsmap(replacements: Mapping[str, str]) -> list[int]:
    """SentencePiece's precompiled normalisation: a double-array trie (darts-clone), then the replacements."""
    trie: dict[Any, Any] = {}
    texts = b""
    for prefix, replacement in replacements.items():
        node = trie
        for byte in prefix.encode():
            node = node.setdefault(byte, {})
        node["value"] = len(texts)
        texts += replacement.encode() + b"\0"
    units, used = {0: 0}, {0}

    def place(node: dict[Any, Any], at: int) -> None:
        slots = [0 if key == "value" else key for key in node]
        offset = next(o for o in range(1, 1 << 20) if not {at ^ o ^ slot for slot in slots} & used)
        units[at] |= offset << 10 | ("value" in node) << 8
        used.update(at ^ offset ^ slot for slot in slots)
        for key, child in node.items():
            slot = at ^ offset ^ (0 if key == "value" else key)
            units[slot] = child | 1 << 31 if key == "value" else key
        for key, child in node.items():
            if key != "value":
                place(child, at ^ offset ^ key)

    place(trie, 0)
    count = -(-(max(units) + 1) // 256) * 256
    blob = struct.pack(f"<I{count}I", 4 * count, *(units.get(n, 0) for n in range(count)))
    return list(blob + texts)
