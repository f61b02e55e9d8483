"""Vocabularies in formats of their own, read: GPT-2's two files, Mistral's tekken, SentencePiece's model."""

import base64
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ggufs import byte_symbols
from tokenizers import AddedToken, ByteLevelBPETokenizer, Regex, Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from tokenizers.processors import TemplateProcessing


def write_gpt2(folder: Path) -> None:
    """encoder.json and vocab.bpe as a tokenizer.json."""
    made = ByteLevelBPETokenizer(str(folder / "encoder.json"), str(folder / "vocab.bpe"))
    _write(folder, made, "<|endoftext|>", "<|endoftext|>")


def write_tekken(folder: Path, specials: int, size: int) -> None:
    """Mistral's tekken file as a tokenizer.json: `specials` ids for special tokens, then bytes by rank."""
    content = json.loads(next(folder.glob("tekken*.json")).read_text("utf-8"))
    symbols = byte_symbols()
    spelled = [
        "".join(symbols[byte] for byte in base64.b64decode(token["token_bytes"]))
        for token in content["vocab"][: size - specials]
    ]
    special = ["<unk>", "<s>", "</s>", *(f"<SPECIAL_{index}>" for index in range(3, specials))]
    ids = {token: index for index, token in enumerate([*special, *spelled])}
    made = Tokenizer(BPE(ids, list(_merges(spelled)), ignore_merges=True))
    words = Split(Regex(content["config"]["pattern"]), "isolated")
    made.pre_tokenizer = Sequence([words, ByteLevel(add_prefix_space=False, use_regex=False)])
    made.post_processor = TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)])
    _write(folder, made, *special[1:])


def _merges(spelled: list[str]) -> Iterator[tuple[str, str]]:
    """What byte pairs a list by rank stands for: each token in every way that two earlier ones make it."""
    ranks = {token: rank for rank, token in enumerate(spelled)}
    for token in spelled:
        pairs = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        known = [pair for pair in pairs if pair[0] in ranks and pair[1] in ranks]
        yield from sorted(known, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))


def _write(folder: Path, made: Any, bos: str, eos: str, *others: str) -> None:
    made.add_special_tokens([AddedToken(t, normalized=False) for t in dict.fromkeys((bos, eos, *others))])
    made.save(str(folder / "tokenizer.json"))
    config = json.dumps({"bos_token": bos, "eos_token": eos})
    (folder / "tokenizer_config.json").write_text(config, "utf-8")


def sentencepiece_model(path: Path) -> Iterator[tuple[str, float, int]]:
    """Text, score and type of each piece: field 1 of the file (`sentencepiece_model.proto`)."""
    for field, value in _fields(path.read_bytes()):
        if field == 1:
            piece = dict(_fields(value))
            yield piece[1].decode(), struct.unpack("<f", piece[2])[0], piece.get(3, 1)


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of each field of a protocol buffer message."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        if key & 7 == 0:
            value, at = _varint(data, at)
        else:
            size, at = _varint(data, at) if key & 7 == 2 else (4 if key & 7 == 5 else 8, at)
            value, at = data[at : at + size], at + size
        yield key >> 3, value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        shift, at = shift + 7, at + 1
        if data[at - 1] < 128:
            return value, at
