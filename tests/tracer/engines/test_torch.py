"""The torch engine: against ours, from both kinds of model file, in 16-bit types; hooks on any module."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import engine_golden as golden
import numpy as np
import pytest
import smollm2_golden
from architecture import CASES
from ggufs import write_gguf
from recording import PROMPT, distances, nrmse, record_trace, worst
from tensortrace.tracer.architecture import build_graph
from tensortrace.tracer.engines import torch as engine
from tensortrace.tracer.errors import MissingExtra, ModelError, UserError
from tensortrace.tracer.gguf import Model
from tensortrace.tracer.names import Key
from tensortrace.tracer.recorder import Recorder
from tensortrace.tracer.selection import Selection
from tensortrace.tracer.torch_experts import INSIDE
from tensortrace.tracer.torch_taps import record_module
from tensortrace.tracer.trace import Trace

needs_torch = pytest.mark.torch
TILES = {"m_tiles", "l_tiles"}  # eager attention has no running softmax


@pytest.fixture
def recorded(tiny_model: Model, tmp_path: Path) -> Callable[..., Trace]:
    def run(
        name: str = "torch.h5", model: Model | Path = tiny_model, dtype: str = "float32", **request
    ) -> Trace:
        made = engine.Engine(build_graph(tiny_model), model, dtype=dtype)
        return golden.record_engine(
            made, tiny_model, tmp_path / name, **{"ids": PROMPT, "n_new": 4, **request}
        )

    return run


@needs_torch
@pytest.mark.slow
def test_smollm2_equals_ours(smollm2_model: Model, tmp_path: Path) -> None:
    """48 tokens and 16 decode steps: every tensor of every layer."""
    run = {"ids": smollm2_golden.PROMPT, "n_new": smollm2_golden.N_NEW}
    graph = build_graph(smollm2_model)
    theirs = golden.record_engine(
        engine.Engine(graph, smollm2_model), smollm2_model, tmp_path / "torch.h5", **run
    )
    record_trace(smollm2_model, tmp_path / "cpu.h5", **run)
    assert set(theirs.tensors) == {key for key in graph.outputs if key.name not in TILES}
    assert all(theirs.has(key, step.index) for key in theirs.tensors for step in theirs.steps)
    q = theirs.tensors[Key(7, "q")]
    assert (q.source, q.op) == ("model.layers.7.self_attn.q_proj", "linear")
    assert q.conventions == {"pairing": "interleaved", "computed_with": "half-split"}
    assert theirs.tensors[Key(7, "m")].conventions == {"scale": 0.125, "derived": True}
    with Trace(tmp_path / "cpu.h5") as ours:
        assert np.array_equal(theirs.generated, ours.generated)
        found = distances(ours, theirs)
    assert max(found.values()) <= 1e-5, worst(found)


@needs_torch
def test_chunks_and_selection_change_nothing(recorded: Callable[..., Trace]) -> None:
    whole, pieces = recorded(), recorded("pieces.h5", chunk=4)
    assert np.array_equal(whole.generated, pieces.generated)
    assert nrmse(pieces.rows_until(Key(1, "k_rope"), 5), whole.rows_until(Key(1, "k_rope"), 3)) <= 1e-5
    few = recorded("few.h5", selection=Selection(layers="1", tensors="m,probs"))
    assert {key.name for key in few.tensors} == {"m", "probs"}
    assert max(distances(whole, few).values()) == 0


@needs_torch
@pytest.mark.parametrize(("dtype", "limit"), [("bfloat16", 0.1), ("float16", 1e-2)])
def test_16_bit_types(dtype: str, limit: float, recorded: Callable[..., Trace]) -> None:
    """Stored in the type that they were computed in, they lose nothing; compared with float32, some bits."""
    exact = recorded(ids=[*PROMPT], n_new=1)
    half = recorded("half.h5", dtype=dtype, n_new=1, storage=dtype)
    wide = recorded("wide.h5", dtype=dtype, n_new=1)
    assert half.header.compute_dtype == dtype
    derived = ("m", "l")  # in float32 from scores in `dtype`
    for key in (key for key in half.tensors if key.name not in derived):
        assert np.array_equal(half.read(key, 0).astype(np.float32), wide.read(key, 0)), key
    found = distances(wide, exact)
    assert 1e-4 < max(found.values()) < limit, worst(found)


@needs_torch
def test_folder_of_safetensors_is_the_same_model(
    tiny: Path, tmp_path: Path, recorded: Callable[..., Trace]
) -> None:
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(tiny.parent, gguf_file=tiny.name)
    del loaded.config.quantization_config  # a model that knows it came from a GGUF refuses to be saved
    model = AutoModelForCausalLM.from_config(loaded.config)
    model.load_state_dict(loaded.state_dict())
    model.save_pretrained(tmp_path / "folder")
    assert list((tmp_path / "folder").glob("*.safetensors"))
    assert max(distances(recorded(model=tmp_path / "folder"), recorded("gguf.h5")).values()) == 0


@needs_torch
def test_models_that_cannot_serve_as_a_reference(tmp_path: Path, tiny_model: Model) -> None:
    biased = Model(write_gguf(tmp_path / "bias.gguf", bias=True))  # transformers drops the biases of a llama
    with pytest.raises(ModelError, match="transformers uses"):
        engine.Engine(None, biased)
    unknown = Model(write_gguf(tmp_path / "unknown.gguf", "unheard-of"))
    with pytest.raises(ModelError, match="cannot load"):
        engine.Engine(None, unknown)
    with pytest.raises(ModelError, match="cannot load"):
        engine.Engine(None, tmp_path)
    with pytest.raises(UserError, match="float64"):
        engine.Engine(None, tiny_model, dtype="float64")


@needs_torch
def test_hooks_on_a_transformers_model(
    tiny_model: Model, tmp_path: Path, recorded: Callable[..., Trace]
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    path = tiny_model.path
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name)
    with Recorder(tmp_path / "hooked.h5", heads=4, kv_heads=2) as rec, record_module(model, rec):
        cache = model(torch.tensor([PROMPT])).past_key_values
        model(torch.tensor([[7]]), past_key_values=cache)
    assert not any(module._forward_hooks for module in model.modules())
    whole = recorded(ids=[*PROMPT, 7], n_new=1)
    with Trace(tmp_path / "hooked.h5") as hooked:
        assert hooked.tokens.tolist() == [*PROMPT, 7]
        for name in ("v", "attn_norm", "act", "resid_out"):
            assert nrmse(hooked.rows_until(Key(1, name), 1), whole.read(Key(1, name), 0)) <= 1e-5
        q = engine.interleaved(hooked.rows_until(Key(1, "q"), 1))
        assert nrmse(q, whole.read(Key(1, "q"), 0)) <= 1e-5


@pytest.fixture
def experts(tmp_path: Path) -> Any:
    """transformers' own Qwen 3 with four experts, two of which each token goes to."""
    import transformers_models
    from transformers import AutoModelForCausalLM

    shape = next(case.shape for case in CASES if str(case) == "qwen3moe-third")
    model = Model(write_gguf(tmp_path / "model.gguf", "qwen3moe", **shape))
    return AutoModelForCausalLM.from_pretrained(transformers_models.save(model, tmp_path), **engine.EAGER)


def hooked(model: Any, path: Path) -> Trace:
    import torch

    with torch.no_grad(), Recorder(path, heads=6, kv_heads=2) as rec, record_module(model, rec):
        model(torch.tensor([PROMPT]))
    return Trace(path)


@needs_torch
def test_inside_experts_is_what_the_module_computes(experts: Any, tmp_path: Path) -> None:
    """Where its activation is another function, so is what is recorded; the products before it stay."""
    import torch

    healthy = hooked(experts, tmp_path / "healthy.h5")
    assert healthy.read(Key(1, "expert_gate"), 0).shape == (len(PROMPT), 2, 40)
    module = experts.model.layers[1].mlp.experts
    module.act_fn = torch.nn.Sigmoid()
    changed = hooked(experts, tmp_path / "changed.h5")
    assert "forward" not in vars(module)
    gate, up = (healthy.read(Key(1, name), 0) for name in ("expert_gate", "expert_up"))
    assert np.array_equal(changed.read(Key(1, "expert_gate"), 0), gate)
    assert nrmse(changed.read(Key(1, "expert_act"), 0), up / (1 + np.exp(-gate))) <= 1e-6
    assert nrmse(changed.read(Key(1, "expert_out"), 0), healthy.read(Key(1, "expert_out"), 0)) > 0.1


@needs_torch
def test_experts_computed_otherwise_show_nothing_inside(experts: Any, tmp_path: Path) -> None:
    experts.set_experts_implementation("batched_mm")
    names = {key.name for key in hooked(experts, tmp_path / "a.h5").tensors}
    assert {"expert_ids", "ffn_out"} <= names
    assert not names & {*INSIDE}


@needs_torch
def test_hooks_by_patterns(tmp_path: Path) -> None:
    import torch

    torch.manual_seed(0)
    blocks = torch.nn.Sequential(
        *(torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.ReLU()) for _ in range(3))
    )
    x = torch.randn(1, 5, 6)
    with Recorder(tmp_path / "a.h5") as rec, record_module(blocks, rec, {"*.1": "act"}, {"*.0": "resid_mid"}):
        result = blocks(x)
    with Trace(tmp_path / "a.h5") as trace:
        assert {(key.layer, key.name) for key in trace.tensors} == {
            (layer, name) for layer in range(3) for name in ("act", "resid_mid")
        }
        assert np.array_equal(trace.read(Key(0, "resid_mid"), 0), x[0].numpy())
        assert np.array_equal(trace.read(Key(2, "act"), 0), result[0].detach().numpy())
    with (
        pytest.raises(UserError, match="matches no part"),
        Recorder(tmp_path / "b.h5") as rec,
        record_module(blocks, rec, {"layers.*": "q"}),
    ):
        pass


def test_without_the_packages(monkeypatch: pytest.MonkeyPatch, tiny_model: Model) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtra, match=r"tensortrace\[torch\]"):
        engine.Engine(None, tiny_model)
