"""What makes ids of text without special tokens: the kinds of vocabulary that a GGUF can hold.

`tokenizer.ggml.model` names them: byte-level BPE (gpt2), SentencePiece BPE (llama) and unigram (t5), each as
llama.cpp computes it.
"""

import struct
from collections.abc import Mapping, Sequence
from enum import IntEnum
from heapq import heappop, heappush
from typing import Any

import tokenizers
from tokenizers import models, pre_tokenizers

from .errors import ModelError
from .pretokenizers import rule


class TokenType(IntEnum):
    """The values of `tokenizer.ggml.token_type`."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


CONVERT = "convert the model to GGUF again"

# Byte-level vocabularies spell printable bytes as themselves and number the others from U+0100 on.
_PRINTABLE = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
_UNPRINTABLE = sorted({*range(256)} - _PRINTABLE)
_BYTE_OF = {chr(b): b for b in _PRINTABLE} | {chr(256 + n): b for n, b in enumerate(_UNPRINTABLE)}


def per_token(metadata: Mapping[str, Any], name: str, count: int) -> Sequence[Any]:
    """The list `tokenizer.ggml.NAME`, which has to hold one value for each of the `count` tokens."""
    values = metadata.get(f"tokenizer.ggml.{name}", ())
    if len(values) != count:
        raise ModelError(f"tokenizer.ggml.{name} has {len(values)} values for {count} tokens: {CONVERT}")
    return values


def id_given(metadata: Mapping[str, Any], name: str, count: int, default: int | None = None) -> int | None:
    """The id that the file gives a role; the default where it gives none, or none of the `count` tokens."""
    token_id = metadata.get(f"tokenizer.ggml.{name}_token_id")
    valid = [choice for choice in (token_id, default) if choice is not None and 0 <= choice < count]
    return valid[0] if valid else None


class TextModel:
    """Text without special tokens to ids, and an ordinary token to its bytes."""

    bos_id: int | None = None  # these four where the file does not say
    eos_id: int | None = None
    add_bos = False
    add_eos = False
    adds_space = False  # in front of each stretch of text

    def __init__(self, vocab: dict[str, int], types: list[int], metadata: Mapping[str, Any]) -> None:
        """`vocab` in the order of the ids, as `types`."""

    def encode(self, text: str) -> list[int]:
        raise NotImplementedError

    def spell(self, token: str) -> bytes:
        return token.replace("▁", " ").encode()


class _ByteLevelBpe(TextModel):
    """gpt2: words, as bytes spelled with printable characters, merge in the order of the file's list."""

    def __init__(self, vocab: dict[str, int], types: list[int], metadata: Mapping[str, Any]) -> None:
        pre = rule(metadata.get("tokenizer.ggml.pre", "default"))
        self.add_bos = pre.add_bos
        if "tokenizer.ggml.merges" not in metadata:
            raise ModelError(f"the vocabulary has no merges (tokenizer.ggml.merges): {CONVERT}")
        try:
            merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
            bpe = models.BPE(vocab, merges, ignore_merges=pre.ignore_merges)
        except Exception as error:  # tokenizers raises nothing more specific
            raise ModelError(f"tokenizer.ggml.merges holds what are not two tokens: {CONVERT}") from error
        self._tokenizer = tokenizers.Tokenizer(bpe)
        # A byte without a token is lost. Cutting there keeps its neighbours from merging with each other.
        lost = "".join(rf"\x{{{ord(char):x}}}" for char in _BYTE_OF if char not in vocab)
        cuts = [pre_tokenizers.Split(tokenizers.Regex(f"[{lost}]"), "removed")] if lost else []
        self._tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre.pre_tokenizer(), *cuts])

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def spell(self, token: str) -> bytes:
        known = all(char in _BYTE_OF for char in token)
        return bytes(_BYTE_OF[char] for char in token) if known else token.encode()


class _SentencePieceBpe(TextModel):
    """llama: neighbours whose joint text is a token merge, best score first, on a tie the leftmost.

    Done here and not by `tokenizers`, whose merges rank pairs: turning scores into ranks takes seconds for a
    vocabulary of 256k tokens, and two ways to make the same token would no longer tie.
    """

    bos_id, eos_id, add_bos = 1, 2, True

    def __init__(self, vocab: dict[str, int], types: list[int], metadata: Mapping[str, Any]) -> None:
        self.adds_space = metadata.get("tokenizer.ggml.add_space_prefix", True)
        self._vocab = vocab
        self._scores = dict(zip(vocab, per_token(metadata, "scores", len(vocab)), strict=True))
        self._unknown = id_given(metadata, "unknown", len(vocab)) or 0

    def encode(self, text: str) -> list[int]:
        text = (" " * self.adds_space + text).replace(" ", "▁")
        symbols = list(text)  # each where its text begins; "" where the text has joined a symbol to the left
        previous = list(range(-1, len(text) - 1))
        queue: list[tuple[float, int, str]] = []

        def offer(left: int) -> None:
            right = left + len(symbols[left])
            if right < len(symbols) and (joint := symbols[left] + symbols[right]) in self._scores:
                heappush(queue, (-self._scores[joint], left, joint))

        for left in range(len(symbols)):
            offer(left)
        while queue:
            _, left, joint = heappop(queue)
            right, end = left + len(symbols[left]), left + len(joint)
            if not left < right < end or symbols[left] + symbols[right] != joint:
                continue  # one of the two has merged elsewhere since
            symbols[left], symbols[right] = joint, ""
            if end < len(symbols):
                previous[end] = left
            if left:
                offer(previous[left])
            offer(left)
        return [token_id for symbol in symbols if symbol for token_id in self._ids(symbol)]

    def _ids(self, symbol: str) -> list[int]:
        if symbol in self._vocab:
            return [self._vocab[symbol]]
        return [self._vocab.get(f"<0x{byte:02X}>", self._unknown) for byte in symbol.encode()]


class _Charsmap:
    """SentencePiece's Unicode normalisation: at each place the longest known prefix is replaced.

    A blob of a length, a double-array trie of prefixes, and the replacements, each ended by a zero byte. Read
    here because the normaliser of `tokenizers` goes by whole graphemes, which loses combining marks.
    """

    def __init__(self, blob: bytes) -> None:
        size = int.from_bytes(blob[:4], "little")
        if size % 4 or not 4 <= size < len(blob) - 4:
            raise ModelError(f"tokenizer.ggml.precompiled_charsmap is damaged: {CONVERT}")
        self._trie = struct.unpack_from(f"<{size // 4}I", blob, 4)
        self._replacements = blob[4 + size :]

    def normalize(self, text: str) -> str:
        normal, at = [], 0
        try:
            while at < len(text):
                replacement, at = self._step(text, at)
                normal.append(replacement)
        except (IndexError, ValueError) as error:
            raise ModelError(f"tokenizer.ggml.precompiled_charsmap is damaged: {CONVERT}") from error
        return "".join(normal)

    def _step(self, text: str, start: int) -> tuple[str, int]:
        """What replaces the longest known prefix of `text[start:]`, or its first character; where it ends."""
        found = text[start], start + 1
        node = self._children(0)
        for end in range(start, len(text)):
            for byte in text[end].encode():
                node ^= byte
                if not byte or node >= len(self._trie) or self._trie[node] & 0x8000_00FF != byte:
                    return found
                complete, node = self._trie[node] & 0x100, self._children(node)
            if complete:
                at = self._trie[node] & 0x7FFF_FFFF
                found = self._replacements[at : self._replacements.index(0, at)].decode(), end + 1
        return found

    def _children(self, node: int) -> int:
        """Where the children of `node` are, before the exclusive or with their byte."""
        unit = self._trie[node]
        return node ^ (unit >> 10) << ((unit & 0x200) >> 6)


class _Unigram(TextModel):
    """t5: the segmentation with the best sum of scores, after the vocabulary's own Unicode normalisation."""

    eos_id, add_eos = 1, True

    def __init__(self, vocab: dict[str, int], types: list[int], metadata: Mapping[str, Any]) -> None:
        self._merge_spaces = metadata.get("tokenizer.ggml.remove_extra_whitespaces", False)
        self.adds_space = self._merge_spaces or metadata.get("tokenizer.ggml.add_space_prefix", False)
        charsmap = bytes(byte & 0xFF for byte in metadata.get("tokenizer.ggml.precompiled_charsmap", ()))
        self._charsmap = _Charsmap(charsmap) if charsmap else None
        # Only ordinary tokens come out of text; the others are left empty, which matches nothing.
        scored = zip(vocab, per_token(metadata, "scores", len(vocab)), types, strict=True)
        pieces = [(token, score) if kind == TokenType.NORMAL else ("", 0.0) for token, score, kind in scored]
        unknown = id_given(metadata, "unknown", len(vocab), 2)
        self._tokenizer = tokenizers.Tokenizer(models.Unigram(pieces, unknown, byte_fallback=False))

    def encode(self, text: str) -> list[int]:
        if self._charsmap:
            text = self._charsmap.normalize(text)
        if self._merge_spaces:
            text = "".join(" " + word for word in text.split(" ") if word)
        elif self.adds_space and text.strip(" "):
            text = " " + text
        return self._tokenizer.encode(text.replace(" ", "▁"), add_special_tokens=False).ids


MODELS: dict[str, type[TextModel]] = {"gpt2": _ByteLevelBpe, "llama": _SentencePieceBpe, "t5": _Unigram}
