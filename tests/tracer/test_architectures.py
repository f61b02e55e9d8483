"""Every tensor of every architecture against llama.cpp and against transformers, and our CUDA set with it.

The models are small and random.  Each shape is a file of its own: as many KV heads as heads, a third, an
eighth; head sizes that are no power of two; tied and untied heads; prompts longer than the windows, and than
the context before RoPE scaling.
"""

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from shutil import rmtree
from typing import Any

import engine_golden as golden
import numpy as np
import pytest
from architecture import ARCHITECTURES, CASES, EXPERTS, TOKENS, WINDOW, YARN, Case
from architectures import gpt_oss, phi3
from ggufs import write_gguf
from recording import nrmse, worst
from tensortrace.tracer.architecture import build_graph, supported
from tensortrace.tracer.engines import cuda
from tensortrace.tracer.engines.cpu import Engine
from tensortrace.tracer.format import Step, plan_steps
from tensortrace.tracer.gguf import Model
from tensortrace.tracer.graph import Compute, Op
from tensortrace.tracer.names import Key
from tensortrace.tracer.packed import Places, unpack
from tensortrace.tracer.plan import shapes
from tensortrace.tracer.tokenizer import Tokenizer

TILES = {"m_tiles", "l_tiles"}  # neither reference has a running softmax
TEXT = "The capital of France is Paris. A transformer computes attention: softmax(QK^T / sqrt(d)) V."
Seen = list[dict[Key, np.ndarray]]  # of each step
FIRST_CASES = [next(case for case in CASES if case.arch == arch) for arch in ARCHITECTURES]
every_case = pytest.mark.parametrize("case", CASES, ids=str)


@pytest.fixture
def model(case: Case, tmp_path: Path) -> Model:
    return Model(write_gguf(tmp_path / "model.gguf", case.arch, **case.shape))


class Taken:
    """Keeps what an engine shows of one step."""

    def __init__(self, engine: Any, step: Step):
        self.engine, self.step, self.seen = engine, step, {}

    def __call__(self, key: Key, array: Any) -> None:
        self.seen[key] = np.array(array)

    def packed(self, block: Any, places: Places) -> None:
        sizes = shapes(self.engine.graph, 1, self.step.kv_len)
        for key, array in unpack(np.array(block), places):
            self(key, array[tuple(map(slice, sizes[key]))])  # not what pads it to the longest step
        block.release()


def run(engine: Any, tokens: Sequence[int]) -> Seen:
    """Every tensor of every step as `engine` computes it: a prompt, then the last three tokens one by one."""
    keys = engine.available()
    assert [spec.key for spec in engine.specs(keys, "float32")] == keys
    session = engine.start(keys, len(tokens))
    seen: Seen = []
    for step in plan_steps(len(tokens) - 3, 4):
        taken = Taken(engine, step)
        session.step(step, np.array(tokens[step.start : step.kv_len]), taken)
        seen.append(taken.seen)
    return seen


def ours(
    model: Model,
    tokens: Sequence[int],
    dtype: str = "float32",
    change: Callable[[Op], Op] = lambda op: op,
) -> Seen:
    return run(Engine(build_graph(model, tile=5).replace(change), model, dtype=dtype), tokens)


def check(found: Seen, expected: Seen, limit: float, unseen: Collection[str] = TILES) -> None:
    """What only one of the two has must be in `unseen`, and all of that."""
    errors = {}
    for index, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert {key.name for key in one.keys() ^ other.keys()} == set(unseen)
        errors |= {(index, key): nrmse(one[key], other[key]) for key in one.keys() & other.keys()}
    assert max(errors.values()) <= limit, worst(errors)


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


def check_against_llama_cpp(model: Model, tokens: Sequence[int]) -> None:
    from tensortrace.tracer.engines import llama_cpp

    theirs = run(llama_cpp.Engine(build_graph(model), model), tokens)
    check(ours(model, tokens, change=with_gelu_of(theirs)), theirs, 1e-4, TILES)


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


def check_against_transformers(model: Model, tokens: Sequence[int], folder: Path) -> None:
    import transformers_models
    from tensortrace.tracer.engines import torch

    theirs = run(torch.Engine(build_graph(model), transformers_models.save(model, folder)), tokens)
    check(ours(model, tokens), theirs, 1e-5, TILES)


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


@pytest.fixture
def windowed_phi3(tmp_path: Path) -> Model:
    shape = phi3.FUSED | {"metadata": WINDOW}
    return Model(write_gguf(tmp_path / "model.gguf", "phi3", **shape))


@pytest.mark.torch
@pytest.mark.llamacpp
def test_phi3_has_the_window_that_llama_cpp_leaves_out(windowed_phi3: Model, tmp_path: Path) -> None:
    """Phi-3-mini-4k's configuration states one of 2047; llama.cpp warns and attends to everything instead."""
    from tensortrace.tracer.engines import llama_cpp

    check_against_transformers(windowed_phi3, TOKENS, tmp_path / "folder")
    theirs = run(llama_cpp.Engine(build_graph(windowed_phi3), windowed_phi3), TOKENS)
    check(ours(windowed_phi3, TOKENS, change=without_window), theirs, 1e-4, TILES)


def without_window(op: Op) -> Op:
    return op.with_params(window=None) if op.kind == "attention" else op


@pytest.mark.torch
@pytest.mark.llamacpp
def test_gpt_oss_has_a_ramp_that_llama_cpp_rounds(tmp_path: Path) -> None:
    """YaRN's `truncate: false` of the models' configuration and OpenAI's own code; ggml rounds always."""
    from tensortrace.tracer.engines import llama_cpp

    yarn = YARN | {"rope.scaling.original_context_length": 64}
    metadata = EXPERTS | WINDOW | yarn
    shape = gpt_oss.SHAPE | {"rope_base": 50.0, "metadata": metadata}
    model = Model(write_gguf(tmp_path / "model.gguf", "gpt-oss", **shape))
    check_against_transformers(model, TOKENS, tmp_path / "folder")
    theirs = run(llama_cpp.Engine(build_graph(model), model), TOKENS)
    check(ours(model, TOKENS, change=with_whole_pairs), theirs, 1e-4, TILES)
    k_rope = Key(0, "k_rope")
    assert nrmse(ours(model, TOKENS)[0][k_rope], theirs[0][k_rope]) > 1e-3


def with_whole_pairs(op: Op) -> Op:
    if op.kind != "rope":
        return op
    low, high = op.params["ramp"]
    return op.with_params(ramp=(math.floor(low), math.ceil(high)))


@pytest.mark.torch
def test_longrope_takes_the_long_factors_once_past_the_original_context(tmp_path: Path) -> None:
    """In the middle of a decode, as transformers' forward; llama.cpp goes by its context size."""
    shape = phi3.FUSED | phi3.longrope(len(TOKENS) - 2, dims=20)
    model = Model(write_gguf(tmp_path / "model.gguf", "phi3", **shape))
    check_against_transformers(model, TOKENS, tmp_path / "folder")


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


def with_gelu_of(theirs: Seen) -> Callable[[Op], Op]:
    """Puts llama.cpp's own GELU into our graph: its CPU backend looks it up in a table of 16-bit numbers."""

    def change(op: Op) -> Op:
        if op.kind != "gelu" and op.params.get("activation") != "gelu_tanh":
            return op
        values = iter([step[op.out] for step in theirs])

        def wrap(compute: Compute) -> Compute:
            return lambda *inputs, **params: near(next(values), compute(*inputs, **params))

        return op.wrapped(wrap)

    def near(table: np.ndarray, exact: np.ndarray) -> np.ndarray:
        assert nrmse(table, exact) <= 1e-3  # 2^-11 when it is looked up, and once more in what is found
        return table

    return change
