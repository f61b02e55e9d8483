"""The tokenizer against llama.cpp, whose ids are what an engine is fed, and against transformers."""

import random
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFWriter
from ggufs import byte_symbols
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_cpp_vocabulary import LlamaCpp, assert_same, assert_same_pieces
from tensortrace.tracer.gguf import Model
from tensortrace.tracer.hub import resolve
from tensortrace.tracer.pretokenizers import RULES
from tensortrace.tracer.tokenizer import Tokenizer
from vocabularies import (
    CASES,
    GOLDEN,
    MESSAGES,
    TEXTS,
    charsmap,
    keys,
    sentencepiece,
    unigram,
)


@pytest.fixture(scope="module")
def tokenizer(smollm2_model: Model) -> Tokenizer:
    return Tokenizer(smollm2_model.metadata)


# transformers


@pytest.mark.torch
def test_like_transformers(tokenizer: Tokenizer, smollm2: Path):
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoTokenizer

    reference = AutoTokenizer.from_pretrained(smollm2.parent, gguf_file=smollm2.name)
    # its GGUF reader knows no tokenizer.ggml.pre = smollm and would leave a space before digits in one piece
    words = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    reference.backend_tokenizer.pre_tokenizer = words
    for text, ids in GOLDEN["cases"]:
        assert reference.encode(text) == tokenizer.encode(text) == ids, text
        for skip in (True, False):
            decoded = reference.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
            assert decoded == tokenizer.decode(ids, skip_special=skip), text
    for text, ids in GOLDEN[
        "across_lost_bytes"
    ]:  # llama.cpp lets nothing merge across a byte without a token
        assert reference.encode(text) != tokenizer.encode(text) == ids
    for messages in (MESSAGES, MESSAGES[1:], MESSAGES[:1]):
        for prompt in (True, False):
            options = {"tokenize": False, "add_generation_prompt": prompt}
            rendered = reference.apply_chat_template(messages, **options)
            assert rendered == tokenizer.chat(messages, add_generation_prompt=prompt)


# llama.cpp


@pytest.fixture(scope="module")
def llama_cpp() -> Iterator[Callable[..., LlamaCpp]]:
    opened: list[LlamaCpp] = []

    def load(path: Path, pre: str | None = None) -> LlamaCpp:
        opened.append(LlamaCpp(path, pre))
        return opened[-1]

    yield load
    for reference in opened:
        reference.close()


@pytest.fixture(scope="module")
def smollm2_in_llama_cpp(smollm2: Path, llama_cpp: Callable[..., LlamaCpp]) -> LlamaCpp:
    return llama_cpp(smollm2)


def write_vocabulary(path: Path, metadata: Mapping[str, Any]) -> Path:
    """A GGUF with nothing but a vocabulary."""
    writer = GGUFWriter(path, "llama")
    for key, value in metadata.items():
        if key.endswith("precompiled_charsmap"):
            writer.add_precompiled_charsmap(bytes(value))
        elif isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        else:
            writer.add_string(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def random_texts(alphabet: list[str], count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choices(alphabet, k=draw.randint(1, 25))) for _ in range(count)]


@pytest.mark.llamacpp
def test_like_llama_cpp(tokenizer: Tokenizer, smollm2_in_llama_cpp: LlamaCpp):
    reference = smollm2_in_llama_cpp
    assert [text for text, ids in CASES if reference.encode(text) != ids] == []
    assert_same(tokenizer, reference, TEXTS)
    assert_same_pieces(tokenizer, reference)


@pytest.mark.llamacpp
@given(text=st.text(st.characters(exclude_categories=["Cs", "Cn"]), max_size=40))
@settings(deadline=None, max_examples=300)
def test_any_text_like_llama_cpp(tokenizer: Tokenizer, smollm2_in_llama_cpp: LlamaCpp, text: str):
    # of assigned characters: what Unicode 16 added are letters for `tokenizers` and not yet for llama.cpp
    assert tokenizer.encode(text) == smollm2_in_llama_cpp.encode(text)


@pytest.fixture(scope="module")
def all_pairs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A byte-level vocabulary in which any two bytes merge, so that ids tell where words begin."""
    symbols = byte_symbols()
    pairs = [(left, right) for left in symbols for right in symbols]
    metadata = keys(
        model="gpt2",
        pre="default",
        tokens=[*symbols, *map("".join, pairs), "Ġthe", "123", "ĠĠĠ"],
        merges=[" ".join(pair) for pair in pairs],
        bos_token_id=0,
        eos_token_id=1,
    )
    return write_vocabulary(tmp_path_factory.mktemp("pairs") / "pairs.gguf", metadata), metadata


@pytest.mark.llamacpp
@pytest.mark.parametrize("name", sorted(RULES))
def test_words_like_llama_cpp(
    name: str, all_pairs: tuple[Path, dict[str, Any]], llama_cpp: Callable[..., LlamaCpp]
):
    path, metadata = all_pairs
    reference, tokenizer = llama_cpp(path, name), Tokenizer(metadata | keys(pre=name))
    for text in [GOLDEN["words_text"], *(text for text in TEXTS if len(text) < 200)]:
        assert tokenizer.encode(text) == reference.encode(text), text


@pytest.mark.llamacpp
@pytest.mark.parametrize("adds_space", [True, False])
@pytest.mark.parametrize("name", ["random", "Phi-3"])
def test_sentencepiece_like_llama_cpp(
    name: str, adds_space: bool, tmp_path: Path, llama_cpp: Callable[..., LlamaCpp]
):
    draw = random.Random(7)
    # many equal scores, tokens of characters that are no tokens, special tokens that overlap
    words = {"".join(draw.choices("aab▁éc", k=draw.randint(1, 5))) for _ in range(150)}
    tokens = [(word, draw.choice([-1.0, -2.0, -3.0])) for word in sorted(words)]
    control = {"<x>": 3, "x><": 3, "<|channel|>": 3, "<|im_end|>": 1, "<|endoftext|>": 1, "<PRE>": 1}
    special = control | {"ba ab": 4, "  ": 4, "u": 5}
    tokens += [(token, 0.0) for token in special]
    metadata = sentencepiece(*tokens, add_space_prefix=adds_space) | {"general.name": name}
    metadata["tokenizer.ggml.token_type"][-len(special) :] = special.values()
    reference, tokenizer = llama_cpp(write_vocabulary(tmp_path / "spm.gguf", metadata)), Tokenizer(metadata)
    assert_same(tokenizer, reference, [*TEXTS, *random_texts([*"aab ▁écdu\n", *special], 1500, 8)])
    assert_same_pieces(tokenizer, reference)


@pytest.mark.llamacpp
@pytest.mark.parametrize("merge_spaces", [True, False])
@pytest.mark.parametrize("adds_space", [True, False])
def test_unigram_like_llama_cpp(
    adds_space: bool, merge_spaces: bool, tmp_path: Path, llama_cpp: Callable[..., LlamaCpp]
):
    draw = random.Random(9)
    tokens = {"".join(draw.choices("aab▁éc", k=draw.randint(1, 5))): draw.uniform(-9, -1) for _ in range(150)}
    tokens = {token: struct.unpack("f", struct.pack("f", score))[0] for token, score in tokens.items()}
    replacements = {"ﬁ": "ab", "e\u0301": "é", "c\u0327\u0301": "", "\t": " ", "\r\n": " ", "c": "cc"}
    metadata = unigram(
        *tokens.items(),
        add_space_prefix=adds_space,
        remove_extra_whitespaces=merge_spaces,
        precompiled_charsmap=charsmap(replacements),
    )
    reference, tokenizer = llama_cpp(write_vocabulary(tmp_path / "t5.gguf", metadata)), Tokenizer(metadata)
    alphabet = [*"aab ▁écdeﬁ\t\r\n\u0301\u0327", "</s>", "<pad>"]
    assert_same(tokenizer, reference, [*TEXTS, *random_texts(alphabet, 1500, 10)])


@pytest.mark.llamacpp
@pytest.mark.slow
def test_gemma_like_llama_cpp(llama_cpp: Callable[..., LlamaCpp]):
    path = resolve("gemma3-270m")
    reference, tokenizer = llama_cpp(path), Tokenizer(Model(path).metadata)
    assert tokenizer.encode("Hello 123 world<eos>") == [2, 9259, 236743, 236770, 236778, 236800, 1902, 1]
    assert_same(tokenizer, reference, TEXTS)
    assert_same_pieces(tokenizer, reference)
    assert tokenizer.stop_ids == {1, 106, 212}
    texts = [text for text in TEXTS if "▁" not in text]
    assert [
        t for t in texts if tokenizer.decode(tokenizer.encode(t), skip_special=False) != f"<bos>{t}"
    ] == []
