"""Where llama.cpp and transformers disagree: who is right, by the model's own paper or configuration.

Each test holds our tensors to the one that is right, and shows that the other differs by nothing else: with
that one thing changed in ours, all tensors agree with it, too.
"""

import math
from pathlib import Path

import numpy as np
import pytest
from agreement import check, check_against_transformers, gelu_table, ours, run
from architecture import CASES, EXPERTS, THIRD, TOKENS, WINDOW, YARN
from architectures import gpt_oss, phi3
from ggufs import write_gguf
from recording import nrmse
from tensortrace.tracer.architecture import build_graph
from tensortrace.tracer.errors import ModelError
from tensortrace.tracer.gguf import Model
from tensortrace.tracer.graph import Op
from tensortrace.tracer.names import Key

WINDOWED = {
    "phi3": phi3.FUSED | {"metadata": WINDOW},
    "llama": THIRD | {"metadata": WINDOW},
}


def write(path: Path, arch: str, **shape) -> Model:
    return Model(write_gguf(path / "model.gguf", arch, **shape))


@pytest.mark.torch
@pytest.mark.llamacpp
@pytest.mark.parametrize("arch", WINDOWED)
def test_windows_that_llama_cpp_leaves_out(arch: str, tmp_path: Path) -> None:
    """All layers have the window that the file states.

    Phi-3-mini-4k's configuration has one of 2047; llama.cpp warns and attends to everything instead.  Mistral
    7B v0.1 has one of 4096 (arXiv:2310.06825); as `llama`, llama.cpp does not read it, nor write it.
    """
    from tensortrace.tracer.engines import llama_cpp

    model = write(tmp_path, arch, **WINDOWED[arch])
    check_against_transformers(model, TOKENS, tmp_path / "folder")
    theirs = run(llama_cpp.Engine(build_graph(model), model), TOKENS)
    check(ours(model, TOKENS, change=without_window), theirs, 1e-4)
    probs = Key(0, "probs")
    assert nrmse(ours(model, TOKENS)[0][probs], theirs[0][probs]) > 1e-3


def test_a_window_of_an_architecture_without_windows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"qwen3\.attention\.sliding_window is 6"):
        build_graph(write(tmp_path, "qwen3", **THIRD, qk_norm=True, metadata=WINDOW))


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
    model = write(tmp_path, "gpt-oss", **shape)
    check_against_transformers(model, TOKENS, tmp_path / "folder")
    theirs = run(llama_cpp.Engine(build_graph(model), model), TOKENS)
    check(ours(model, TOKENS, change=with_whole_pairs), theirs, 1e-4)
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
    model = write(tmp_path, "phi3", **shape)
    check_against_transformers(model, TOKENS, tmp_path / "folder")


@pytest.mark.torch
@pytest.mark.llamacpp
@pytest.mark.parametrize("arch", ["gemma2", "gemma3", "gpt2"])
def test_gelu_is_a_table_of_16_bits_in_llama_cpp(arch: str, tmp_path: Path) -> None:
    """Its own act is that table of its own gate, bit for bit; transformers' is the formula in float32.

    The formula is that of the GELU paper (arXiv:1606.08415) and of the models' configurations (`gelu_new`,
    `gelu_pytorch_tanh`).
    """
    import transformers_models
    from tensortrace.tracer.engines import llama_cpp, torch

    model = write(tmp_path, arch, **next(case.shape for case in CASES if case.arch == arch))
    graph, folder = build_graph(model), transformers_models.save(model, tmp_path / "folder")
    rounded = run(llama_cpp.Engine(graph, model), TOKENS)
    right = run(torch.Engine(graph, folder), TOKENS)
    for op in (op for op in graph.ops if op.out.name == "act"):
        for looked_up, computed in zip(rounded, right, strict=True):
            gate, *up = (looked_up[key] for key in op.inputs)
            assert np.array_equal(looked_up[op.out], math.prod(up, start=gelu_table(gate)))
            assert nrmse(looked_up[op.out], math.prod(up, start=gelu(gate))) > 1e-4
            gate, *up = (computed[key] for key in op.inputs)
            assert nrmse(computed[op.out], math.prod(up, start=gelu(gate))) <= 1e-6


def gelu(x: np.ndarray) -> np.ndarray:
    """In float64."""
    x = x.astype(np.float64)
    return 0.5 * x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3)))
