"""The tokenizer against what references gave before; the live ones are in test_tokenizer_references.py."""

import json
import re
from typing import Any

import pytest
from ggufs import CHAT_TEMPLATE, byte_symbols, vocabulary
from hypothesis import given, settings
from hypothesis import strategies as st
from tensortrace.tracer.errors import ModelError
from tensortrace.tracer.gguf import Model
from tensortrace.tracer.pretokenizers import RULES
from tensortrace.tracer.tokenizer import Tokenizer, TokenType
from vocabularies import CASES, GOLDEN, MESSAGES, TEXTS, byte_level, charsmap, keys, sentencepiece, unigram


@pytest.fixture(scope="module")
def tokenizer(smollm2_model: Model) -> Tokenizer:
    return Tokenizer(smollm2_model.metadata)


def lost_bytes(tokenizer: Tokenizer) -> set[int]:
    pieces = {tokenizer.piece(token_id) for token_id in range(tokenizer.vocab_size)}
    return {byte for byte in range(256) if bytes([byte]) not in pieces}


def streamed(tokenizer: Tokenizer, ids: list[int]) -> str:
    stream = tokenizer.stream()
    return "".join(map(stream.push, ids)) + stream.flush()


# What has to hold with neither llama.cpp nor transformers installed


def test_ids_are_those_that_both_references_gave(tokenizer: Tokenizer):
    assert len(CASES) > 400
    assert [text for text, ids in CASES if tokenizer.encode(text) != ids] == []


def test_decode_gives_back_the_text(tokenizer: Tokenizer):
    lost = lost_bytes(tokenizer)
    texts = [text for text in TEXTS if not lost & set(text.encode())]
    assert len(texts) > 350
    assert [text for text in texts if tokenizer.decode(tokenizer.encode(text)) != text] == []


def test_stream_and_pieces_join_to_what_decode_gives(tokenizer: Tokenizer):
    for _, ids in CASES:
        assert streamed(tokenizer, ids) == tokenizer.decode(ids)
        assert b"".join(map(tokenizer.piece, ids)).decode(errors="replace") == tokenizer.decode(ids)


@given(ids=st.lists(st.integers(0, 49151), max_size=30))
@settings(deadline=None)
def test_stream_equals_decode_for_any_ids(tokenizer: Tokenizer, ids: list[int]):
    assert streamed(tokenizer, ids) == tokenizer.decode(ids)


@given(text=st.text(max_size=60))
@settings(deadline=None)
def test_any_text_survives(text: str):
    tokenizer = Tokenizer(byte_level())
    assert tokenizer.decode(tokenizer.encode(text, parse_special=False)) == text


def test_what_the_file_says(tokenizer: Tokenizer):
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id) == (49152, 1, 2)
    assert (tokenizer.add_bos, tokenizer.add_eos) == (False, False)
    assert tokenizer.stop_ids == {0, 2, 4}  # <|endoftext|>, <|im_end|> and, for llama.cpp, <reponame>


def test_special_tokens_in_text(tokenizer: Tokenizer):
    text = "a<|im_end|>b"
    assert tokenizer.encode(text) == [81, 2, 82]
    assert 2 not in tokenizer.encode(text, parse_special=False)
    assert tokenizer.decode([81, 2, 82], skip_special=True) == "ab"
    assert tokenizer.decode([81, 2, 82]) == text


def test_characters_come_whole_out_of_a_stream(tokenizer: Tokenizer):
    ids = tokenizer.encode("👍🏽")
    stream = tokenizer.stream()
    texts = [stream.push(token_id) for token_id in ids]
    assert len(ids) > 2
    assert [text for text in texts if text] == ["👍", "🏽"]
    stream.push(ids[0])
    assert (stream.flush(), stream.flush()) == ("\ufffd", "")


def test_undecodable_bytes_of_a_command_line_become_replacement_characters(tokenizer: Tokenizer):
    assert tokenizer.decode(tokenizer.encode("a\udcffb")) == "a\ufffdb"


@pytest.mark.parametrize("rule", GOLDEN["words"], ids=lambda rule: rule["names"][0])
def test_words(rule: dict[str, list[str]]):
    for name in rule["names"]:
        pieces = RULES[name].pre_tokenizer().pre_tokenize_str(GOLDEN["words_text"])
        assert [GOLDEN["words_text"][start:end] for _, (start, end) in pieces] == rule["words"], name


def test_every_rule_has_golden_words():
    assert sorted(name for rule in GOLDEN["words"] for name in rule["names"]) == sorted(RULES)


def test_a_whole_word_wins_over_merges_where_the_rule_says_so():
    tokens = [*byte_symbols(), "ab", "abc"]
    metadata = keys(model="gpt2", tokens=tokens, merges=["a b"], bos_token_id=0, add_bos_token=False)
    assert Tokenizer(metadata | keys(pre="llama-bpe")).encode("abc") == [257]
    assert Tokenizer(metadata | keys(pre="gpt-2")).encode("abc") == [256, tokens.index("c")]


# SentencePiece BPE


def test_sentencepiece_merges_by_score():
    # ▁ab is worth more than the parts it is made of, but only bc makes a first step: best score first
    pieces = [("▁", -9.0), ("a", -9.0), ("b", -9.0), ("c", -9.0), ("bc", -1.0), ("ab", -2.0), ("▁a", -3.0)]
    tokenizer = Tokenizer(sentencepiece(*pieces))
    assert tokenizer.encode("abc") == [1, 265, 263]  # <s> ▁a bc
    assert tokenizer.encode("ab", add_special=False) == [259, 264]
    assert tokenizer.encode("é", add_special=False) == [259, 3 + 0xC3, 3 + 0xA9]
    assert tokenizer.decode([1, 265, 263, 3 + 0xC3, 3 + 0xA9], skip_special=True) == "abcé"


def test_sentencepiece_takes_the_leftmost_of_equal_scores():
    tokenizer = Tokenizer(sentencepiece(("a", -9.0), ("aa", -1.0), add_space_prefix=False))
    assert tokenizer.encode("aaa", add_special=False) == [260, 259]


def test_sentencepiece_space_comes_before_every_stretch_of_text():
    pieces = ("▁", -9.0), ("a", -9.0), ("▁a", -1.0)
    tokenizer = Tokenizer(sentencepiece(*pieces))
    assert tokenizer.encode("a</s>a a") == [1, 261, 2, 261, 261]
    assert tokenizer.decode(tokenizer.encode("a a"), skip_special=True) == "a a"
    assert streamed(tokenizer, [261, 261]) == " a a"  # a continuation keeps its space
    assert Tokenizer(sentencepiece(*pieces, add_space_prefix=False)).encode("a a") == [1, 260, 261]


def test_phi3_strips_space_after_special_tokens():
    metadata = sentencepiece(("▁", -9.0), ("a", -9.0), ("<|user|>", 0.0), add_space_prefix=False)
    metadata["tokenizer.ggml.token_type"][-1] = TokenType.CONTROL
    assert Tokenizer(metadata).encode("<|user|>\n a", add_special=False) == [261, 3 + 10, 259, 260]
    named = metadata | {"general.name": "Phi-3 mini"}
    assert Tokenizer(named).encode("<|user|>\n a", add_special=False) == [261, 260]


# Unigram


def test_unigram_takes_the_best_sum():
    pieces = [("▁", -2.0), ("a", -3.0), ("b", -3.0), ("ab", -4.0), ("▁a", -2.5), ("▁ab", -9.0)]
    tokenizer = Tokenizer(unigram(*pieces, add_space_prefix=True, remove_extra_whitespaces=True))
    assert tokenizer.encode("ab") == [7, 5, 1]  # ▁a b: -5.5, ▁ ab: -6, ▁ab: -9
    assert tokenizer.encode("  a   xy ", add_special=False) == [7, 3, 2]
    assert tokenizer.decode(tokenizer.encode("ab a"), skip_special=True) == "ab a"
    assert tokenizer.encode("a<pad>", parse_special=False)[1:] == [2, 4, 2, 1]  # < p, a, d >


def test_unigram_normalises_first():
    pieces = [("f", -1.0), ("i", -1.0), ("fi", -1.5), ("é", -1.0), ("e", -1.0), ("\u0308", -1.0)]
    mapping = charsmap({"ﬁ": "fi", "e\u0301": "é", "²": "", "ｆ": "f"})
    tokenizer = Tokenizer(unigram(*pieces, precompiled_charsmap=mapping))
    ids = tokenizer.encode("ﬁe\u0301\u0308e²ｆ", add_special=False)
    assert [tokenizer.piece(token_id).decode() for token_id in ids] == ["fi", "é", "\u0308", "e", "f"]


# Special tokens by their text


def test_tokens_that_end_a_generation():
    def stops(*tokens: str, **values: Any) -> set[str]:
        metadata = sentencepiece(*((token, 0.0) for token in tokens), **values)
        tokenizer = Tokenizer(metadata)
        return {tokenizer.piece(token_id).decode() for token_id in tokenizer.stop_ids}

    assert stops() == {"</s>"}
    assert stops("<|eot_id|>", "<|eom_id|>", "x") == {"</s>", "<|eot_id|>", "<|eom_id|>"}
    assert stops("a", "b", "c", eos_token_id=259, eot_token_id=260, eom_token_id=261) == {"</s>", *"abc"}
    assert stops("<PAD>", "<fim_prefix>") == {"</s>", "<PAD>"}
    assert stops("<|return|>", "<|call|>", "<|end|>") == {"</s>", "<|return|>", "<|call|>"}


def test_types_follow_the_text():
    tokenizer = Tokenizer(sentencepiece(*((token, 0.0) for token in ("<", "<|im_end|>", "<|channel|>"))))
    assert tokenizer.encode("<|im_end|>", add_special=False)[-1:] == [260]
    assert tokenizer.decode([260, 261], skip_special=True) == "<|channel|>"
    assert tokenizer.encode("<|channel|>", add_special=False, parse_special=False) == [261]


def test_empty_and_unused_tokens_stand_for_nothing():
    tokenizer = Tokenizer(byte_level() | keys(tokens=[*vocabulary(), "", "", "[PAD]"]))
    assert tokenizer.vocab_size == 303
    metadata = sentencepiece(("x", 0.0))
    metadata["tokenizer.ggml.token_type"][-1] = TokenType.UNUSED
    assert Tokenizer(metadata).piece(259) == b""


# Chat templates


def chat(template: str, messages: list[dict] = MESSAGES, **values: Any) -> str:
    return Tokenizer(byte_level(**values) | {"tokenizer.chat_template": template}).chat(messages)


def test_chat_renders_the_model_template(tokenizer: Tokenizer):
    start = (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    )
    text = start + "<|im_start|>user\nHi<|im_end|>\n"
    assert tokenizer.chat([{"role": "user", "content": "Hi"}], add_generation_prompt=False) == text
    assert tokenizer.chat([{"role": "user", "content": "Hi"}]) == f"{text}<|im_start|>assistant\n"
    assert 2 in tokenizer.encode(text, add_special=False)


def test_chat_has_what_templates_use():
    assert chat(CHAT_TEMPLATE).startswith("<|im_start|>system\nBe brief.<|im_end|>\n")
    assert chat("{{ bos_token }}{{ eos_token }}", **keys(bos_token_id=298)) == "<|im_start|><|endoftext|>"
    assert chat("{{ messages[1] | tojson }}") == json.dumps(MESSAGES[1], ensure_ascii=False)
    assert re.fullmatch(r"\d{4}", chat("{{ strftime_now('%Y') }}"))
    assert chat("{% for m in messages %}{% if loop.index == 2 %}{% break %}{% endif %}x{% endfor %}") == "x"
    assert chat("{% if tools is none %}a{% endif %}\n  {% generation %}\nb{% endgeneration %}") == "ab"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('roles must\nalternate') }}", "roles must alternate"),
        ("{% if %}", "TemplateSyntaxError"),
        ("{{ messages[0].nothing.more }}", "UndefinedError"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
        ("{{ messages.append(1) }}", "SecurityError"),
    ],
)
def test_a_template_that_fails_says_why_in_one_line(template: str, reason: str):
    with pytest.raises(ModelError, match=reason) as failure:
        chat(template)
    assert "\n" not in str(failure.value)


def test_chat_without_a_template():
    with pytest.raises(ModelError, match="no chat template"):
        Tokenizer(byte_level()).chat(MESSAGES)


# Files that do not hold what they should

INCOMPLETE = {
    "no tokenizer": ({}, "gpt2, llama, t5"),
    "unknown model": (keys(model="rwkv"), "'rwkv' is not supported; known: gpt2, llama, t5"),
    "unknown rule": (byte_level(**keys(pre="novel")), "'novel' is not supported; .*llama-bpe.*qwen2"),
    "no tokens": (keys(model="gpt2", merges=[]), "no vocabulary"),
    "tokens that are no text": (keys(model="gpt2", tokens=[1, 2], merges=[]), "no vocabulary"),
    "a token twice": (keys(model="gpt2", tokens=["a", "a"], merges=[]), "twice"),
    "no merges": (keys(model="gpt2", tokens=["a"]), "no merges"),
    "a merge of unknown tokens": (keys(model="gpt2", tokens=["a"], merges=["a b"]), "not two tokens"),
    "half a merge": (keys(model="gpt2", tokens=["a"], merges=["a"]), "not two tokens"),
    "too few types": (byte_level(**keys(token_type=[1])), "1 values for 300 tokens"),
    "no scores": (keys(model="llama", tokens=["a"]), "0 values for 1 tokens"),
    "BOS wanted, none named": (byte_level(**keys(add_bos_token=True)), "bos_token_id names no token"),
    "a charsmap cut short": (unigram(precompiled_charsmap=[9, 0, 0, 0]), "charsmap is damaged"),
}


@pytest.mark.parametrize(("metadata", "reason"), INCOMPLETE.values(), ids=INCOMPLETE)
def test_what_is_missing_is_said_in_one_line(metadata: dict[str, Any], reason: str):
    with pytest.raises(ModelError, match=reason) as failure:
        Tokenizer(metadata)
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize("token_id", [-1, 300])
def test_ids_outside_the_vocabulary_are_refused(token_id: int):
    for use in (Tokenizer(byte_level()).piece, lambda i: Tokenizer(byte_level()).decode([i])):
        with pytest.raises(ModelError, match="not in the vocabulary of 300 tokens"):
            use(token_id)
