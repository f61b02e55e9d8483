"""Text to token ids and back, built from nothing but a GGUF's own metadata.

llama.cpp is the reference for what an engine is fed: byte-level BPE (`tokenizer.ggml.model` = gpt2),
SentencePiece BPE (llama) and unigram (t5) give the ids and the stop tokens that it computes from the same
file. `decode` alone differs: it undoes `encode` and never tidies the spaces around punctuation.
"""

import codecs
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, ext, nodes
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from .errors import ModelError
from .text_models import CONVERT, MODELS, TokenType, id_given, per_token

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

_BYTE_TOKENS = {f"<0x{byte:02X}>": bytes([byte]) for byte in range(256)}


class Tokenizer:
    """The tokenizer that a GGUF describes.

    `metadata` maps the file's keys to plain Python values. ModelError says what is wrong when the file holds
    no vocabulary, one that contradicts itself, or one of a kind that is not supported. `stop_ids` end a
    generation: end of sequence, of turn and of message, and what else llama.cpp stops at.
    """

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        kind = metadata.get("tokenizer.ggml.model")
        if kind not in MODELS:
            raise ModelError(f"tokenizer.ggml.model {kind!r} is not supported; known: {', '.join(MODELS)}")
        model = MODELS[kind]
        listed = metadata.get("tokenizer.ggml.tokens", ())
        if not listed or not all(isinstance(token, str) for token in listed):
            raise ModelError(f"the model has no vocabulary (tokenizer.ggml.tokens): {CONVERT}")
        # Empty tokens get a name, as in llama.cpp, so that they stay apart.
        self._tokens = [token or f"[EMPTY_{token_id}]" for token_id, token in enumerate(listed)]
        self._id_of = {token: token_id for token_id, token in enumerate(self._tokens)}
        self.vocab_size = len(self._tokens)
        if len(self._id_of) < self.vocab_size:
            raise ModelError(f"the vocabulary (tokenizer.ggml.tokens) holds a token twice: {CONVERT}")
        self._types: list[int] = [TokenType.NORMAL] * self.vocab_size
        if "tokenizer.ggml.token_type" in metadata:
            self._types = list(per_token(metadata, "token_type", self.vocab_size))

        self.bos_id = id_given(metadata, "bos", self.vocab_size, model.bos_id)
        self.eos_id = id_given(metadata, "eos", self.vocab_size, model.eos_id)
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
            raise ModelError(f"{key} is set, but tokenizer.ggml.{name}_token_id names no token: {CONVERT}")
        return []

    def _settle_types(self, metadata: Mapping[str, Any]) -> frozenset[int]:
        """Correct the types of the tokens that are known by their text; the ids that end a generation."""
        ids = self._id_of
        control = {token: ids[token] for token in _STOPS.split() if token in ids}
        given = {id_given(metadata, name, self.vocab_size) for name in ("eot", "eom")}
        stops = {self.eos_id, *given, *control.values()}
        for name, texts in _FILL_IN.items():
            token_id = id_given(metadata, name, self.vocab_size)
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
