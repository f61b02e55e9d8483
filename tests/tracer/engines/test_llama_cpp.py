"""The llama.cpp engine: on the same float32 weights against ours, on other architectures against torch."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import engine_golden as golden
import numpy as np
import pytest
import smollm2_golden
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from ggufs import write_gguf
from recording import PROMPT, distances, nrmse, record_trace, worst
from tensortrace.analyze.replay import Replay
from tensortrace.tracer import ggml
from tensortrace.tracer.architecture import build_graph
from tensortrace.tracer.engines import llama_cpp
from tensortrace.tracer.errors import MissingExtra, ModelError, UserError
from tensortrace.tracer.gguf import Model
from tensortrace.tracer.names import Key
from tensortrace.tracer.selection import Selection
from tensortrace.tracer.tokenizer import Tokenizer
from tensortrace.tracer.trace import Trace

needs_llama_cpp = pytest.mark.llamacpp
TILES = {"m_tiles", "l_tiles"}  # llama.cpp has no running softmax to show
RUN = {"ids": smollm2_golden.PROMPT, "n_new": smollm2_golden.N_NEW}  # 48 tokens and 16 decode steps
Recorder = Callable[..., Trace]


@pytest.fixture
def recorded(tmp_path: Path) -> Recorder:
    """Records a model by llama.cpp, given its options, and opens the trace."""

    def run(model: Path | Model, name: str = "llama.h5", options: dict | None = None, **request) -> Trace:
        model = Model(model) if isinstance(model, Path) else model
        engine = llama_cpp.Engine(None, model, **(options or {}))
        return golden.record_engine(engine, model, tmp_path / name, **{"ids": PROMPT, "n_new": 4, **request})

    return run


@pytest.fixture(scope="module")
def smollm2_f32(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = golden.rewrite(smollm2, tmp_path_factory.mktemp("f32") / "smollm2.gguf")
    yield path
    path.unlink()  # half a gigabyte


@pytest.fixture(scope="module")
def quantised(smollm2_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Trace:
    """The real model as people run it, but for the KV cache, which is in float32."""
    engine = llama_cpp.Engine(build_graph(smollm2_model), smollm2_model)
    return golden.record_engine(engine, smollm2_model, tmp_path_factory.mktemp("q") / "llama.h5", **RUN)


@needs_llama_cpp
def test_every_tensor_of_smollm2(quantised: Trace, smollm2_model: Model) -> None:
    expected = {key for key in build_graph(smollm2_model).outputs if key.name not in TILES}
    assert set(quantised.tensors) == expected
    assert all(quantised.has(key, step.index) for key in expected for step in quantised.steps)
    assert len(quantised.flushed) == 17
    assert quantised.header.settings["activation"] == "q8"
    scores, l = quantised.tensors[Key(3, "scores")], quantised.tensors[Key(3, "l")]  # noqa: E741
    assert (scores.source, scores.op, scores.conventions["scale"]) == ("kq-3 (MUL_MAT)", "attention", 0.125)
    assert l.conventions["derived"]
    q = quantised.tensors[Key(3, "q")]
    assert q.conventions == {"weight_type": "Q4_1", "activation_type": "Q8_1"}


@needs_llama_cpp
@pytest.mark.slow
def test_same_as_ours_on_float32_weights(smollm2_f32: Path, recorded: Recorder, tmp_path: Path) -> None:
    theirs = recorded(smollm2_f32, **RUN)
    assert theirs.header.settings["activation"] == "f32"
    record_trace(smollm2_f32, tmp_path / "cpu.h5", **RUN)
    with Trace(tmp_path / "cpu.h5") as ours:
        assert np.array_equal(theirs.generated, ours.generated)
        found = distances(ours, theirs)
    assert max(found.values()) <= 1e-5, worst(found)  # 1e-4 is promised


@needs_llama_cpp
@pytest.mark.slow
def test_quantised_differs_by_what_8_bit_activations_explain(quantised: Trace, smollm2_model: Model) -> None:
    """From llama.cpp's own inputs, rounded where ggml rounds them, each op gives what it recorded."""
    replay = Replay(quantised, smollm2_model)
    for op in (op for op in replay.graph.ops if op.out.layer in (0, 15, 29, None)):
        for step in (0, 16):
            if op.kind == "linear":
                inputs = replay.value(op.inputs[0], step).reshape(len(quantised.rows(step)), -1)
                weights = [smollm2_model.weight(name, np.float64) for name in op.weights]
                results = {op.out: op.compute()(_in_8_bits(inputs), *weights, **op.params)}
                limit = 2e-3  # Q8_1 keeps the sum of each block beside it, as a 16-bit float
            else:
                results, limit = replay.compute(op, step), 2e-6
            for key, values in results.items():
                assert nrmse(quantised.read(key, step), values) < limit, (key, step)


def _in_8_bits(values: np.ndarray) -> np.ndarray:
    """Values after a trip through ggml's 8-bit blocks, by the gguf package."""
    kind = GGMLQuantizationType.Q8_0
    return dequantize(quantize(values.astype(np.float32), kind), kind).astype(np.float64)


@needs_llama_cpp
def test_scores_probs_m_and_l_belong_together(recorded: Recorder, tiny: Path) -> None:
    trace = recorded(tiny, n_new=3)
    for step in trace.flushed:
        names = ("scores", "m", "l", "probs")
        read = {name: trace.read(Key(1, name), step.index).astype(np.float64) for name in names}
        future = np.arange(step.kv_len) > np.arange(step.start, step.kv_len)[:, None]
        assert np.array_equal(np.isneginf(read["scores"]), np.broadcast_to(future, read["scores"].shape))
        probs = np.exp(read["scores"] - read["m"][..., None]) / read["l"][..., None]
        assert nrmse(read["probs"], probs) <= 1e-6


@needs_llama_cpp
def test_chunks_decode_and_more_than_one_padding_of_the_cache(recorded: Recorder, tiny: Path) -> None:
    """llama.cpp pads the keys to 256: 300 tokens in chunks, then decode, equal the same tokens at once."""
    ids = np.random.default_rng(0).integers(0, 300, 300).tolist()
    pieces = recorded(tiny, "pieces.h5", ids=ids, n_new=3, chunk=130)
    whole = recorded(tiny, "whole.h5", ids=pieces.tokens.tolist(), n_new=1)
    for key in whole.tensors:
        last = pieces.steps[-1]
        values = whole.read(key, 0)
        row = values[:, -1:] if key.name in ("scores", "m", "l", "probs") else values[-1:]
        assert nrmse(pieces.read(key, last.index), row) <= 1e-5, key


@needs_llama_cpp
def test_a_selection_is_the_same_numbers(recorded: Recorder, tiny: Path) -> None:
    every = recorded(tiny)
    for names in ("probs", "scores", "m", "q_rope,logits"):
        few = recorded(tiny, f"{names}.h5", selection=Selection(layers="1", tensors=names))
        assert {key.name for key in few.tensors} == set(names.split(","))
        assert max(distances(few, few).values()) == 0
        for step in few.flushed:
            for key in few.tensors:
                assert np.array_equal(few.read(key, step.index), every.read(key, step.index))


@needs_llama_cpp
def test_kv_types_and_flash_attention(recorded: Recorder, tiny: Path) -> None:
    exact = recorded(tiny)
    half = recorded(tiny, "half.h5", {"kv": "f16"})
    flash = recorded(tiny, "flash.h5", {"flash": True})
    assert flash.header.settings["flash"]
    assert not {key.name for key in flash.tensors} & {"scores", "m", "l", "probs"}
    for other in (half, flash):
        found = distances(exact, other, "attn")
        assert 1e-6 < max(found.values()) < 5e-3, worst(found)  # K and V rounded to 16-bit floats


# transformers takes the head size of these from its own defaults, not from the file
WIDE = {"heads": 2, "kv_heads": 1, "embd": 64}
WINDOW = {"attention.sliding_window": 4}
CAPS = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
GEMMA = WIDE | {"head_dim": 256, "post_norms": True, "tied": True}
ARCHITECTURES = {
    "llama": {},
    "qwen2": {"bias": True},
    "qwen3": WIDE | {"head_dim": 128, "qk_norm": True},
    "gemma2": GEMMA | {"metadata": WINDOW | CAPS},
    "gemma3": GEMMA | {"metadata": WINDOW, "qk_norm": True, "layers": 7},
}


@needs_llama_cpp
@pytest.mark.torch
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_other_architectures_against_torch(arch: str, recorded: Recorder, tmp_path: Path) -> None:
    from tensortrace.tracer.engines import torch

    model = Model(write_gguf(tmp_path / "model.gguf", arch, **ARCHITECTURES[arch]))
    llama = recorded(model, ids=[5, 250, 17, 17, 99, 3, 280])
    engine = torch.Engine(None, model)
    reference = golden.record_engine(engine, model, tmp_path / "torch.h5", llama.tokens, n_new=1)
    assert set(llama.tensors) == set(reference.tensors)
    # ggml looks GELU up in a table of 16-bit floats
    limit = 2e-3 if arch.startswith("gemma") else 1e-5
    for key in llama.tensors:
        values = reference.read(key, 0)
        by_query = key.name in ("scores", "m", "l", "probs")
        for step in llama.flushed:
            rows, keys = slice(step.start, step.kv_len), slice(step.kv_len)
            expected = values[rows] if not by_query else values[:, rows]
            expected = expected[..., keys] if key.name in ("scores", "probs") else expected
            assert nrmse(llama.read(key, step.index), expected) <= limit, (key, step)


@needs_llama_cpp
def test_columns_of_a_fused_projection(recorded: Recorder, tmp_path: Path) -> None:
    """phi3 stores Q, K, V as one matrix, gate and up as another; views of it are resolved by strides."""
    qwen = write_gguf(tmp_path / "qwen2.gguf", "qwen2")
    plain = recorded(qwen)

    def fuse(weights: golden.Weights) -> golden.Weights:
        for block in ("blk.0.", "blk.1."):
            parts = [weights.pop(f"{block}attn_{name}.weight") for name in "qkv"]
            weights[f"{block}attn_qkv.weight"] = np.concatenate(parts)
        return weights

    fused = recorded(golden.rewrite(qwen, tmp_path / "fused.gguf", fuse), "fused.h5")
    assert fused.tensors[Key(0, "q")].source == "Qcur-0 (VIEW)"
    found = distances(fused, plain)
    assert max(found.values()) <= 1e-5, worst(found)


@needs_llama_cpp
def test_mixture_of_experts(recorded: Recorder, tmp_path: Path) -> None:
    experts, used, rng = 4, 2, np.random.default_rng(1)
    dense = write_gguf(
        tmp_path / "dense.gguf",
        "qwen3moe",
        qk_norm=True,
        metadata={"expert_count": experts, "expert_used_count": used, "expert_feed_forward_length": 96},
    )

    def split(weights: golden.Weights) -> golden.Weights:
        for block in ("blk.0.", "blk.1."):
            for name in ("gate", "up", "down"):
                one = weights.pop(f"{block}ffn_{name}.weight")
                several = one + rng.normal(0, 0.1, (experts, *one.shape))
                weights[f"{block}ffn_{name}_exps.weight"] = several.astype(np.float32)
            weights[f"{block}ffn_gate_inp.weight"] = rng.normal(0, 0.3, (experts, 64)).astype(np.float32)
        return weights

    model = Model(golden.rewrite(dense, tmp_path / "moe.gguf", split))
    trace = recorded(model)
    assert not {"gate", "up", "act"} & {key.name for key in trace.tensors}
    for step in trace.flushed:
        read = {name: trace.read(Key(1, name), step.index) for name in ("ffn_norm", "router", "ffn_out")}
        ids, weights = (trace.read(Key(1, f"expert_{name}"), step.index) for name in ("ids", "weights"))
        router = read["ffn_norm"] @ model.weight("blk.1.ffn_gate_inp.weight").T
        assert nrmse(read["router"], router) <= 1e-5
        assert ids.dtype == np.int32
        assert np.array_equal(ids, np.argsort(-router, axis=1)[:, :used])
        chosen = np.exp(np.take_along_axis(router, ids, 1))
        assert nrmse(weights, chosen / chosen.sum(1, keepdims=True)) <= 1e-5
        assert read["ffn_out"].shape == read["ffn_norm"].shape


@needs_llama_cpp
def test_tokeniser_agrees_with_ours(smollm2_model: Model, tiny_model: Model) -> None:
    texts = ("Hello, world", "  two  spaces\n\ttab", "naïve 北京 🙂", "<|im_start|>user\nHi<|im_end|>", "")
    for model in (smollm2_model, tiny_model):
        engine, ours = llama_cpp.Engine(None, model), Tokenizer(model.metadata)
        assert [engine.tokenize(text) for text in texts] == [ours.encode(text) for text in texts]
        assert not any(engine.prompt_difference(text, ours.encode(text)) for text in texts)
    ids = [*ours.encode("that is"), 5]
    told = engine.prompt_difference("that is", ids)
    assert f"from token {len(ids) - 1} on: [] there, [5] here" in told


@needs_llama_cpp
def test_what_fails_in_the_callback_is_raised(tiny_model: Model) -> None:
    class Full(Exception):
        pass

    def sink(key: Key, array: np.ndarray) -> None:
        raise Full

    engine = llama_cpp.Engine(None, tiny_model)
    session = engine.start(engine.available(), 4)
    step = golden.Request([1, 2, 3]).steps[0]
    with pytest.raises(Full):
        session.step(step, np.array([1, 2, 3]), sink)


@needs_llama_cpp
def test_bad_requests_and_files(tiny: Path, tiny_model: Model, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="float64"):
        llama_cpp.Engine(None, tiny_model, dtype="float64")
    with pytest.raises(UserError, match="q4_k"):
        llama_cpp.Engine(None, tiny_model, kv="q4_k")
    unknown = write_gguf(tmp_path / "unknown.gguf", "unheard-of")
    with pytest.raises(ModelError, match="unknown model architecture"):
        llama_cpp.Engine(None, Model(unknown))
    session = llama_cpp.Engine(None, tiny_model).start([], 4)
    with pytest.raises(ModelError, match="stopped"):
        session.step(golden.Request([1, 2]).steps[0], np.array([1, 5000]), lambda key, array: None)


@needs_llama_cpp
def test_another_tensor_layout_is_refused(monkeypatch: pytest.MonkeyPatch, tiny_model: Model) -> None:
    class Grown(ggml.ctypes.Structure):
        _fields_ = (("new", ggml.ctypes.c_int64), *ggml.Tensor._fields_)

    monkeypatch.setattr(ggml, "Tensor", Grown)
    with pytest.raises(UserError, match="lays out its tensors"):
        llama_cpp.Engine(None, tiny_model)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch, tiny_model: Model) -> None:
    for name in ("llama_cpp", "llama_cpp.llama_cpp"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtra, match=r"tensortrace\[llamacpp\]"):
        llama_cpp.Engine(None, tiny_model)
