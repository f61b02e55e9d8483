"""llama.cpp's own tokenizer, and ours held against it."""

import ctypes
from collections.abc import Iterable
from pathlib import Path

from tensortrace.tracer.tokenizer import Tokenizer


class LlamaCpp:
    """llama.cpp's own tokenizer for a GGUF, with another `tokenizer.ggml.pre` if wanted."""

    def __init__(self, path: Path, pre: str | None = None) -> None:
        import llama_cpp

        self.api = llama_cpp
        llama_cpp.llama_log_set(_SILENT, ctypes.c_void_p(0))
        options = llama_cpp.llama_model_default_params()
        options.vocab_only = True
        if pre:
            overrides = (llama_cpp.llama_model_kv_override * 2)()  # an empty key ends the list
            overrides[0].key, overrides[0].tag = b"tokenizer.ggml.pre", llama_cpp.LLAMA_KV_OVERRIDE_TYPE_STR
            overrides[0].value.val_str = pre.encode()
            options.kv_overrides = ctypes.cast(overrides, type(options.kv_overrides))
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), options)
        assert self.model, f"llama.cpp does not load {path}"
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        data = text.encode()
        room = len(data) + 16
        ids = (self.api.llama_token * room)()
        count = self.api.llama_tokenize(self.vocab, data, len(data), ids, room, add_special, parse_special)
        return ids[:count]

    def piece(self, token_id: int) -> bytes:
        buffer = ctypes.create_string_buffer(512)
        length = self.api.llama_token_to_piece(self.vocab, token_id, buffer, 512, 0, True)
        return buffer.raw[:length]

    def stop_ids(self) -> set[int]:
        count = self.api.llama_vocab_n_tokens(self.vocab)
        return {token_id for token_id in range(count) if self.api.llama_vocab_is_eog(self.vocab, token_id)}

    def close(self) -> None:
        self.api.llama_model_free(self.model)


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
def _SILENT(level: int, text: bytes, data: int) -> None:
    """A log that nobody reads; kept alive as long as llama.cpp may call it."""


def assert_same(tokenizer: Tokenizer, reference: LlamaCpp, texts: Iterable[str]) -> None:
    for add_special in (True, False):
        for parse_special in (True, False):
            how = {"add_special": add_special, "parse_special": parse_special}
            for text in texts:
                assert tokenizer.encode(text, **how) == reference.encode(text, **how), (text, how)


def assert_same_pieces(tokenizer: Tokenizer, reference: LlamaCpp) -> None:
    ids = range(tokenizer.vocab_size)
    assert [token_id for token_id in ids if tokenizer.piece(token_id) != reference.piece(token_id)] == []
    assert tokenizer.stop_ids == reference.stop_ids()
