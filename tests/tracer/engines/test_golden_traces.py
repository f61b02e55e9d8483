"""The CPU engine against frozen traces of llama.cpp and transformers (`engine_golden.py` says how made)."""

from collections.abc import Callable
from pathlib import Path

import engine_golden as golden
import numpy as np
import pytest
from recording import distances, record_trace, worst
from tensortrace.analyze.replay import Replay, residual
from tensortrace.tracer.gguf import Model
from tensortrace.tracer.names import Key
from tensortrace.tracer.trace import Trace


@pytest.fixture(scope="module")
def ours(smollm2_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Trace:
    path = tmp_path_factory.mktemp("golden") / "cpu.h5"
    record_trace(smollm2_model, path, golden.PROMPT, n_new=golden.N_NEW, selection=golden.SELECTION)
    return Trace(path)


@pytest.fixture
def frozen() -> Callable[[str], Trace]:
    return lambda name: Trace(golden.FOLDER / name)


@pytest.mark.parametrize("name", ["torch.h5", "llama_cpp_f32.h5"])
def test_equal_to_rounding(name: str, ours: Trace, frozen: Callable[[str], Trace]) -> None:
    theirs = frozen(name)
    assert theirs.complete
    assert set(theirs.tensors) == set(ours.tensors)
    assert np.array_equal(theirs.generated, ours.generated)
    found = distances(ours, theirs)
    assert max(found.values()) <= 1e-5, worst(found)


def test_llama_cpp_as_people_run_it(ours: Trace, frozen: Callable[[str], Trace]) -> None:
    """With 8-bit activations nothing is equal but the words, yet every layer stays near."""
    theirs = frozen("llama_cpp.h5")
    assert theirs.header.settings["activation"] == "q8"
    assert np.array_equal(theirs.generated, ours.generated)
    found = distances(ours, theirs)
    assert found[0, Key(None, "embd")] == 0
    assert 1e-4 < found[0, Key(0, "q_rope")] < 1e-2
    assert max(found.values()) < 0.2, worst(found)


def test_ops_of_llama_cpp_replay_from_its_own_inputs(
    smollm2_model: Model, frozen: Callable[[str], Trace]
) -> None:
    """What the quantised run shows larger differences for, it inherited: each op by itself is right."""
    trace = frozen("llama_cpp.h5")
    replay = Replay(trace, smollm2_model)
    for layer in (0, 14, 29):
        for step in (0, 2):
            # K and V went through a cache of 16-bit floats; W_o's input is rounded to 8 bits
            for name, limit in {"scores": 1e-3, "probs": 2e-3, "attn": 2e-3, "attn_out": 2e-2}.items():
                op = replay.graph.producer(Key(layer, name))
                assert op is not None
                recorded = trace.read(Key(layer, name), step)
                added = residual(recorded, replay.compute(op, step)[Key(layer, name)])
                size = np.linalg.norm(recorded[np.isfinite(recorded)])
                assert added / size < limit, (layer, step, name)


def test_files_are_small_and_say_what_they_are(smollm2: Path) -> None:
    for path in (golden.FOLDER / name for name in ("torch.h5", "llama_cpp.h5", "llama_cpp_f32.h5")):
        assert path.stat().st_size < 400_000
        with Trace(path) as trace:
            assert trace.header.engine in ("torch", "llama.cpp")
            assert trace.header.model_sha256 == Model(smollm2).sha256
            assert trace.prompt_ids.tolist() == list(golden.PROMPT)
