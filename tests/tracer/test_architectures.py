"""Every tensor of every architecture against llama.cpp and against transformers, and our CUDA set with it.

The models are small and random.  Each shape is a file of its own: as many KV heads as heads, a third, an
eighth; head sizes that are no power of two; tied and untied heads; prompts longer than the windows, and than
the context before RoPE scaling.
"""

from collections.abc import Iterator
from pathlib import Path
from shutil import rmtree
from typing import Any

import engine_golden as golden
import numpy as np
import pytest
from agreement import check, check_against_llama_cpp, check_against_transformers, ours, run
from architecture import ARCHITECTURES, CASES, TOKENS, Case
from fake_device import FakeDevice
from ggufs import write_gguf
from recording import nrmse
from tensortrace.tracer.architecture import build_graph, supported
from tensortrace.tracer.engines import cuda
from tensortrace.tracer.gguf import Model
from tensortrace.tracer.names import Key
from tensortrace.tracer.tokenizer import Tokenizer

TEXT = "The capital of France is Paris. A transformer computes attention: softmax(QK^T / sqrt(d)) V."
every_case = pytest.mark.parametrize("case", CASES, ids=str)


@pytest.fixture
def model(case: Case, tmp_path: Path) -> Model:
    return Model(write_gguf(tmp_path / "model.gguf", case.arch, **case.shape))


@pytest.fixture(scope="module")
def gemma3_model(gemma3: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """gemma3-270m with its weights in float32, so that llama.cpp does not round activations."""
    path = golden.rewrite(gemma3, tmp_path_factory.mktemp("f32") / "gemma3.gguf")
    yield Model(path)
    path.unlink()  # more than a gigabyte


def test_every_architecture_has_cases() -> None:
    assert set(ARCHITECTURES) == set(supported())


@pytest.mark.llamacpp
@every_case
def test_against_llama_cpp(case: Case, model: Model) -> None:
    check_against_llama_cpp(model, TOKENS)


@pytest.mark.llamacpp
@pytest.mark.slow
def test_gemma3_270m_against_llama_cpp(gemma3_model: Model) -> None:
    check_against_llama_cpp(gemma3_model, Tokenizer(gemma3_model.metadata).encode(TEXT))


@pytest.mark.torch
@every_case
def test_against_transformers(case: Case, model: Model, tmp_path: Path) -> None:
    check_against_transformers(model, TOKENS, tmp_path / "folder")


@pytest.mark.torch
@pytest.mark.slow
def test_gemma3_270m_against_transformers(gemma3_model: Model, tmp_path: Path) -> None:
    tokens = Tokenizer(gemma3_model.metadata).encode(TEXT)
    check_against_transformers(gemma3_model, tokens, tmp_path / "folder")
    rmtree(tmp_path / "folder")  # more than a gigabyte


@pytest.fixture(params=["qwen2-yarn", "gemma3-linear"])
def stretched(request: pytest.FixtureRequest, tmp_path: Path) -> Model:
    """A model with RoPE scaling that was trained on 1024 positions, and windows of 512 where it has some."""
    case = next(case for case in CASES if str(case) == request.param)
    longer = {"rope.scaling.original_context_length": 1024, "context_length": 4096}
    windows = {"attention.sliding_window": 512} if case.arch == "gemma3" else {}
    shape = case.shape | {"metadata": case.shape["metadata"] | longer | windows}
    return Model(write_gguf(tmp_path / "model.gguf", case.arch, **shape))


@pytest.mark.torch
@pytest.mark.llamacpp
def test_past_the_original_context(stretched: Model, tmp_path: Path) -> None:
    tokens = np.random.default_rng(0).integers(0, 297, 1100).tolist()
    check_against_llama_cpp(stretched, tokens)
    check_against_transformers(stretched, tokens, tmp_path / "folder")


@every_case
def test_in_float64(case: Case, model: Model) -> None:
    """The same graph in both types: float32 loses rounding, and nothing is left in the other type."""
    double = ours(model, TOKENS, "float64")
    assert {array.dtype.name for step in double for array in step.values()} <= {"float64", "int32"}
    check(ours(model, TOKENS), double, 2e-5, ())


@every_case
def test_on_the_cuda_set(case: Case, model: Model, device: Any) -> None:
    """Decode included, which runs as a captured graph."""
    engine = cuda.Engine(build_graph(model, tile=5), model, device=device)
    check(run(engine, TOKENS), ours(model, TOKENS), 1e-5, ())
    if isinstance(device, FakeDevice):
        assert device.launches == 2  # of three decode steps the first is run plainly


@pytest.mark.parametrize(
    "case", [next(c for c in CASES if c.arch == arch) for arch in ARCHITECTURES], ids=str
)
def test_half_precision_on_the_cuda_set_is_rounding(case: Case, model: Model, device: Any) -> None:
    engine = cuda.Engine(build_graph(model, tile=5), model, dtype="float16", device=device)
    found, exact, logits = run(engine, TOKENS), ours(model, TOKENS), Key(None, "logits")
    for half, single in zip(found, exact, strict=True):
        assert half.keys() == single.keys()
        assert nrmse(half[logits][-1].astype(np.float32), single[logits][-1]) <= 5e-3


@every_case
def test_tokeniser_loads(case: Case, model: Model) -> None:
    tokenizer = Tokenizer(model.metadata)
    assert tokenizer.decode(tokenizer.encode("that is")) == "that is"
