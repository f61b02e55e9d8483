"""Text to token ids and back, built from nothing but a GGUF's own metadata.

llama.cpp is the reference for what an engine is fed: byte-level BPE (`tokenizer.ggml.model` = gpt2),
SentencePiece BPE (llama) and unigram (t5) give the ids and the stop tokens that it computes from the same
file. `decode` alone differs: it undoes `encode` and never tidies the spaces around punctuation.
"""

import codecs
import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from enum import IntEnum
from heapq import heappop, heappush
from typing import Any

import tokenizers
from jinja2 import TemplateError, ext, nodes
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
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


# Files often leave types and ids out, so llama.cpp also goes by a token's text. Tokens with these texts are
# control tokens whatever their type says. All of _STOPS and the last three of _FILL_IN end a generation.
_STOPS = (
    "<|eot_id|> <|im_end|> <|end|> <|return|> <|call|> <|flush|> <|calls|> <end_of_turn> <|endoftext|> </s> "
    "<|eom_id|> <EOT> _<EOT> [EOT] [EOS] <|end_of_text|> <end_of_utterance> <eos> <turn|> <|tool_response> "
    "<｜end▁of▁sentence｜> [e~["
)
_FILL_IN = {
    "fim_pre": "<|fim_prefix|> <fim-prefix> <fim_prefix> <｜fim▁begin｜> <PRE> ▁<PRE> <|prefix|> "
    "<|code_prefix|>",
    "fim_suf": "<|fim_suffix|> <fim-suffix> <fim_suffix> <｜fim▁hole｜> <SUF> ▁<SUF> <|suffix|> "
    "<|code_suffix|>",
    "fim_mid": "<|fim_middle|> <fim-middle> <fim_middle> <｜fim▁end｜> <MID> ▁<MID> <|middle|> "
    "<|code_middle|>",
    "fim_pad": "<|fim_pad|> <fim-pad> <fim_pad> <PAD> [PAD]",
    "fim_rep": "<|fim_repo|> <|repo_name|> <fim-repo> <REPO> <reponame>",
    "fim_sep": "<|file_sep|>",
}
_SPECIAL = {TokenType.UNKNOWN, TokenType.CONTROL, TokenType.USER_DEFINED}  # found in text before all else
_ALWAYS_SHOWN = ["<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"]  # gpt-oss
_CONVERT = "convert the model to GGUF again"

# Byte-level vocabularies spell printable bytes as themselves and number the others from U+0100 on.
_PRINTABLE = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
_UNPRINTABLE = sorted({*range(256)} - _PRINTABLE)
_BYTE_OF = {chr(b): b for b in _PRINTABLE} | {chr(256 + n): b for n, b in enumerate(_UNPRINTABLE)}
_BYTE_TOKENS = {f"<0x{byte:02X}>": bytes([byte]) for byte in range(256)}


def _per_token(metadata: Mapping[str, Any], name: str, count: int) -> Sequence[Any]:
    """The list `tokenizer.ggml.NAME`, which has to hold one value for each of the `count` tokens."""
    values = metadata.get(f"tokenizer.ggml.{name}", ())
    if len(values) != count:
        raise ModelError(f"tokenizer.ggml.{name} has {len(values)} values for {count} tokens: {_CONVERT}")
    return values


def _id_given(metadata: Mapping[str, Any], name: str, count: int, default: int | None = None) -> int | None:
    """The id that the file gives a role; the default where it gives none, or none of the `count` tokens."""
    token_id = metadata.get(f"tokenizer.ggml.{name}_token_id")
    valid = [choice for choice in (token_id, default) if choice is not None and 0 <= choice < count]
    return valid[0] if valid else None


class _TextModel:
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


class _ByteLevelBpe(_TextModel):
    """gpt2: words, as bytes spelled with printable characters, merge in the order of the file's list."""

    def __init__(self, vocab: dict[str, int], types: list[int], metadata: Mapping[str, Any]) -> None:
        pre = rule(metadata.get("tokenizer.ggml.pre", "default"))
        self.add_bos = pre.add_bos
        if "tokenizer.ggml.merges" not in metadata:
            raise ModelError(f"the vocabulary has no merges (tokenizer.ggml.merges): {_CONVERT}")
        try:
            merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
            bpe = models.BPE(vocab, merges, ignore_merges=pre.ignore_merges)
        except Exception as error:  # tokenizers raises nothing more specific
            raise ModelError(f"tokenizer.ggml.merges holds what are not two tokens: {_CONVERT}") from error
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


class _SentencePieceBpe(_TextModel):
    """llama: neighbours whose joint text is a token merge, best score first, on a tie the leftmost.

    Done here and not by `tokenizers`, whose merges rank pairs: turning scores into ranks takes seconds for a
    vocabulary of 256k tokens, and two ways to make the same token would no longer tie.
    """

    bos_id, eos_id, add_bos = 1, 2, True

    def __init__(self, vocab: dict[str, int], types: list[int], metadata: Mapping[str, Any]) -> None:
        self.adds_space = metadata.get("tokenizer.ggml.add_space_prefix", True)
        self._vocab = vocab
        self._scores = dict(zip(vocab, _per_token(metadata, "scores", len(vocab)), strict=True))
        self._unknown = _id_given(metadata, "unknown", len(vocab)) or 0

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
            raise ModelError(f"tokenizer.ggml.precompiled_charsmap is damaged: {_CONVERT}")
        self._trie = struct.unpack_from(f"<{size // 4}I", blob, 4)
        self._replacements = blob[4 + size :]

    def normalize(self, text: str) -> str:
        normal, at = [], 0
        try:
            while at < len(text):
                replacement, at = self._step(text, at)
                normal.append(replacement)
        except (IndexError, ValueError) as error:
            raise ModelError(f"tokenizer.ggml.precompiled_charsmap is damaged: {_CONVERT}") from error
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


class _Unigram(_TextModel):
    """t5: the segmentation with the best sum of scores, after the vocabulary's own Unicode normalisation."""

    eos_id, add_eos = 1, True

    def __init__(self, vocab: dict[str, int], types: list[int], metadata: Mapping[str, Any]) -> None:
        self._merge_spaces = metadata.get("tokenizer.ggml.remove_extra_whitespaces", False)
        self.adds_space = self._merge_spaces or metadata.get("tokenizer.ggml.add_space_prefix", False)
        charsmap = bytes(byte & 0xFF for byte in metadata.get("tokenizer.ggml.precompiled_charsmap", ()))
        self._charsmap = _Charsmap(charsmap) if charsmap else None
        # Only ordinary tokens come out of text; the others are left empty, which matches nothing.
        scored = zip(vocab, _per_token(metadata, "scores", len(vocab)), types, strict=True)
        pieces = [(token, score) if kind == TokenType.NORMAL else ("", 0.0) for token, score, kind in scored]
        unknown = _id_given(metadata, "unknown", len(vocab), 2)
        self._tokenizer = tokenizers.Tokenizer(models.Unigram(pieces, unknown, byte_fallback=False))

    def encode(self, text: str) -> list[int]:
        if self._charsmap:
            text = self._charsmap.normalize(text)
        if self._merge_spaces:
            text = "".join(" " + word for word in text.split(" ") if word)
        elif self.adds_space and text.strip(" "):
            text = " " + text
        return self._tokenizer.encode(text.replace(" ", "▁"), add_special_tokens=False).ids


_MODELS: dict[str, type[_TextModel]] = {"gpt2": _ByteLevelBpe, "llama": _SentencePieceBpe, "t5": _Unigram}


class Tokenizer:
    """The tokenizer that a GGUF describes.

    `metadata` maps the file's keys to plain Python values. ModelError says what is wrong when the file holds
    no vocabulary, one that contradicts itself, or one of a kind that is not supported. `stop_ids` end a
    generation: end of sequence, of turn and of message, and what else llama.cpp stops at.
    """

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        kind = metadata.get("tokenizer.ggml.model")
        if kind not in _MODELS:
            raise ModelError(f"tokenizer.ggml.model {kind!r} is not supported; known: {', '.join(_MODELS)}")
        model = _MODELS[kind]
        listed = metadata.get("tokenizer.ggml.tokens", ())
        if not listed or not all(isinstance(token, str) for token in listed):
            raise ModelError(f"the model has no vocabulary (tokenizer.ggml.tokens): {_CONVERT}")
        # Empty tokens get a name, as in llama.cpp, so that they stay apart.
        self._tokens = [token or f"[EMPTY_{token_id}]" for token_id, token in enumerate(listed)]
        self._id_of = {token: token_id for token_id, token in enumerate(self._tokens)}
        self.vocab_size = len(self._tokens)
        if len(self._id_of) < self.vocab_size:
            raise ModelError(f"the vocabulary (tokenizer.ggml.tokens) holds a token twice: {_CONVERT}")
        self._types: list[int] = [TokenType.NORMAL] * self.vocab_size
        if "tokenizer.ggml.token_type" in metadata:
            self._types = list(_per_token(metadata, "token_type", self.vocab_size))

        self.bos_id = _id_given(metadata, "bos", self.vocab_size, model.bos_id)
        self.eos_id = _id_given(metadata, "eos", self.vocab_size, model.eos_id)
        self.stop_ids = self._settle_types(metadata)
        self._model = model(self._id_of, self._types, metadata)
        self._first = self._added(metadata, "bos", self.bos_id, self._model.add_bos)
        self._last = self._added(metadata, "eos", self.eos_id, self._model.add_eos)
        self.add_bos, self.add_eos = bool(self._first), bool(self._last)
        self.chat_template: str | None = metadata.get("tokenizer.chat_template")
        self._special = [token_id for token_id, kind in enumerate(self._types) if kind in _SPECIAL]
        self._special.sort(key=lambda token_id: -len(self._tokens[token_id].encode()))
        name = str(metadata.get("general.name", "")).lower()
        self._strips_right = "phi-3" in name or "phi3" in name  # llama.cpp goes by the name, too

    def _added(
        self, metadata: Mapping[str, Any], name: str, token_id: int | None, default: bool
    ) -> list[int]:
        """What to put at an end of the text: the BOS or EOS, or nothing."""
        key = f"tokenizer.ggml.add_{name}_token"
        if token_id is not None:
            return [token_id] * metadata.get(key, default)
        if metadata.get(key):
            raise ModelError(f"{key} is set, but tokenizer.ggml.{name}_token_id names no token: {_CONVERT}")
        return []

    def _settle_types(self, metadata: Mapping[str, Any]) -> frozenset[int]:
        """Correct the types of the tokens that are known by their text; the ids that end a generation."""
        ids = self._id_of
        control = {token: ids[token] for token in _STOPS.split() if token in ids}
        given = {_id_given(metadata, name, self.vocab_size) for name in ("eot", "eom")}
        stops = {self.eos_id, *given, *control.values()}
        for name, texts in _FILL_IN.items():
            token_id = _id_given(metadata, name, self.vocab_size)
            found = next((token for token in texts.split() if token in ids), None)
            if token_id is None and found:
                token_id = control[found] = ids[found]
            if name in ("fim_pad", "fim_rep", "fim_sep"):
                stops.add(token_id)
        shown = ids.keys() & _ALWAYS_SHOWN
        if control.keys() & {"<|call|>", "<|calls|>"} and control.keys() & {"<|return|>", "<|flush|>"}:
            shown |= control.keys() & {"<|end|>"}  # there it ends one message of several
        for token in control:
            self._types[ids[token]] = TokenType.CONTROL
        for token in shown:
            self._types[ids[token]] = TokenType.USER_DEFINED
        kept = stops - {ids[token] for token in shown}
        return frozenset(token_id for token_id in kept if token_id is not None)

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """Token ids of `text`.

        `add_special` puts BOS in front and EOS behind where the model wants them. `parse_special` takes the
        text of a control token for that token; without it only user-defined tokens are found in text.
        """
        # Bytes of a command line that were no text arrive as lone surrogates.
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        present = [token_id for token_id in self._special if self._tokens[token_id] in text]
        if not parse_special:
            present = [token_id for token_id in present if self._types[token_id] == TokenType.USER_DEFINED]
        parts: list[int | str] = [text]
        for special in present:  # the longest first
            parts = [piece for part in parts for piece in self._cut(part, special)]
        ids = [*self._first] if add_special else []
        for part in parts:
            ids += [part] if isinstance(part, int) else self._model.encode(part) if part else []
        return ids + self._last if add_special else ids

    def _cut(self, part: int | str, token_id: int) -> Iterator[int | str]:
        """Text cut at each place where the token stands; what is a token already stays one."""
        if isinstance(part, int):
            yield part
            return
        token = self._tokens[token_id]
        strips = self._strips_right and token not in ("<unk>", "<s>", "<|endoftext|>")
        while part:
            text, found, part = part.partition(token)
            yield text
            if found:
                yield token_id
                part = part.lstrip(" \t\n\v\f\r") if strips else part

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """Text of `ids`; bytes that are not UTF-8 become U+FFFD, and a space that `encode` put in front goes.

        `skip_special` leaves out control and unknown tokens.
        """
        hidden = (TokenType.CONTROL, TokenType.UNKNOWN) if skip_special else ()
        pieces = (self.piece(token_id) for token_id in ids if self._type(token_id) not in hidden)
        text = b"".join(pieces).decode("utf-8", "replace")
        return text.removeprefix(" ") if self._model.adds_space else text

    def piece(self, token_id: int) -> bytes:
        """The bytes that a token stands for: part of a character, perhaps; none for an unused token."""
        kind, token = self._type(token_id), self._tokens[token_id]
        if kind == TokenType.NORMAL:
            return self._model.spell(token)
        if kind == TokenType.BYTE:
            return _BYTE_TOKENS.get(token, b"")
        return token.encode() if kind in _SPECIAL else b""

    def _type(self, token_id: int) -> int:
        if not 0 <= token_id < self.vocab_size:
            raise ModelError(f"token id {token_id} is not in the vocabulary of {self.vocab_size} tokens")
        return self._types[token_id]

    def stream(self) -> "StreamDecoder":
        """A decoder for tokens that come one by one."""
        return StreamDecoder(self)

    def chat(self, messages: list[dict], *, add_generation_prompt: bool = True) -> str:
        """`messages` (`role`, `content`) in the form of the model's chat template.

        Encode the result with `add_special=False`: the template writes the special tokens. ModelError when
        the model has no template, or when the template fails or refuses the messages.
        """
        if self.chat_template is None:
            raise ModelError("the model has no chat template (tokenizer.chat_template): use plain text")
        variables = {
            "messages": messages,
            "tools": None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            "bos_token": "" if self.bos_id is None else self._tokens[self.bos_id],
            "eos_token": "" if self.eos_id is None else self._tokens[self.eos_id],
        }
        try:
            return _chat_environment().from_string(self.chat_template).render(variables)
        except Exception as error:  # a template is a program from the file: anything can go wrong in it
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise ModelError(f"the model's chat template fails on these messages: {reason}") from error


class StreamDecoder:
    """Tokens to text as they come, holding bytes back until they are whole characters.

    The pieces join to what `decode` gives for the same ids, except that a leading space stays: the tokens may
    continue a text.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The text that became complete with this token; often empty inside a character."""
        return self._utf8.decode(self._tokenizer.piece(token_id))

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character that was never completed."""
        return self._utf8.decode(b"", final=True)


class _Generation(ext.Extension):
    """`{% generation %}` marks the assistant's words for training; here it passes them through."""

    tags = {"generation"}  # noqa: RUF012 (jinja's own declaration)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def _chat_environment() -> ImmutableSandboxedEnvironment:
    """The Jinja that chat templates are written for, as transformers sets it up."""

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:  # jinja's own escapes HTML
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment
