"""A Hugging Face folder through `trace record`, against the GGUF of the same weights and vocabulary."""

import json
from pathlib import Path

import numpy as np
import pytest
from architecture import ARCHITECTURES
from commands import run
from ggufs import CHAT_TEMPLATE, MERGES, vocabulary
from recording import distances, record_trace
from tensortrace.tracer.checkpoint import Checkpoint
from tensortrace.tracer.errors import ModelError, UserError
from tensortrace.tracer.gguf import Model
from tensortrace.tracer.tokenizer import Tokenizer
from tensortrace.tracer.trace import Trace

TEXTS = ("that is the and", "naïve 北京 🙂", "<|im_start|>the<|im_end|>")


@pytest.fixture(scope="module")
def folder(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as transformers saves it, with its tokenizer."""
    from transformers import AutoModelForCausalLM, GPT2TokenizerFast

    path = tmp_path_factory.mktemp("checkpoints") / "tiny-hf"
    loaded = AutoModelForCausalLM.from_pretrained(tiny.parent, gguf_file=tiny.name)
    del loaded.config.quantization_config  # a model that knows it came from a GGUF refuses to be saved
    model = AutoModelForCausalLM.from_config(loaded.config)
    model.load_state_dict(loaded.state_dict())
    model.save_pretrained(path)
    ids = {token: number for number, token in enumerate(vocabulary())}
    merges = [tuple(merge.split(" ")) for merge in MERGES]
    tokenizer = GPT2TokenizerFast(vocab=ids, merges=merges, eos_token="<|im_end|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(path)
    return path


@pytest.mark.torch
def test_a_folder_is_recorded_as_the_gguf_of_it(folder: Path, tiny: Path, tmp_path: Path) -> None:
    ask = ("-p", "that is the", "-n", 3, "-o")
    outcome = run("record", folder, "--engine", "torch", *ask, tmp_path / "hf.h5")
    assert outcome.code == 0, outcome.err
    ids = Tokenizer(Model(tiny).metadata).encode("that is the")
    record_trace(tiny, tmp_path / "gguf.h5", ids, n_new=3)
    with Trace(tmp_path / "hf.h5") as ours, Trace(tmp_path / "gguf.h5") as gguf:
        assert np.array_equal(ours.tokens, gguf.tokens)
        assert ours.pieces == [b"that", *ours.pieces[1:]]
        assert (ours.header.model_name, ours.header.architecture) == ("tiny-hf", "llama")
        assert ours.header.hyperparameters["llama.block_count"] == 2
        assert ours.header.prompt == "that is the"
        assert max(distances(ours, gguf, "q scores resid_out logits").values()) <= 1e-5
    assert run("compare", tmp_path / "hf.h5", tmp_path / "gguf.h5").code == 0


@pytest.mark.parametrize(
    ("model_type", "arch"),
    [
        *((entry.model_type, arch) for arch, entry in ARCHITECTURES.items()),
        *(("mistral", "llama"), ("mixtral", "llama"), ("olmo3", "olmo2"), ("unheard_of", "unheard_of")),
    ],
)
def test_a_folder_is_of_the_architecture_of_its_gguf(model_type: str, arch: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}), "utf-8")
    assert Checkpoint(tmp_path).arch == arch


@pytest.mark.torch
def test_weights_in_the_dtype_asked_for(folder: Path, tmp_path: Path) -> None:
    ask = ("--tokens", "1,2,3", "-n", 1, "--tensors", "q,logits", "-o")
    for compute, dtype in (("f32", "float32"), ("bf16", "bfloat16")):
        outcome = run(
            "record", folder, "--engine", "torch", "--compute", compute, *ask, tmp_path / f"{compute}.h5"
        )
        assert outcome.code == 0, outcome.err
        with Trace(tmp_path / f"{compute}.h5") as trace:
            assert trace.header.compute_dtype == dtype
    with Trace(tmp_path / "bf16.h5") as half, Trace(tmp_path / "f32.h5") as exact:
        assert 1e-3 < max(distances(half, exact).values()) < 5e-2


@pytest.mark.torch
def test_tokenizer_of_a_folder(folder: Path, tiny_model: Model) -> None:
    theirs, ours = Checkpoint(folder).tokenizer(), Tokenizer(tiny_model.metadata)
    for text in TEXTS:
        ids = theirs.encode(text, add_special=False)
        assert ids == ours.encode(text, add_special=False)
        stream = theirs.stream()
        assert "".join(map(stream.push, ids)) + stream.flush() == text
    assert theirs.chat([{"role": "user", "content": "the"}]) == ours.chat(
        [{"role": "user", "content": "the"}]
    )


def test_folders_that_hold_no_model(tmp_path: Path, tiny: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        Checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("[1")
    with pytest.raises(ModelError, match="cannot read"):
        Checkpoint(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "eos_token_id": [2, 3]}))
    folder = Checkpoint(tmp_path)
    assert (folder.arch, folder.stop_ids) == ("llama", {2, 3})
    with pytest.raises(UserError, match="give ids by --tokens"):
        folder.tokenizer().encode("text")
    told = run("record", tmp_path, "-p", "x", "-o", tmp_path / "a.h5")
    assert (told.code, "only --engine torch runs one" in told.err) == (2, True)
