"""Logs that a live llama.cpp prints, against exact traces of the same run and of healthy ones."""

from pathlib import Path

import engine_golden as golden
import numpy as np
import pytest
from ggufs import write_gguf
from llama_printer import print_run
from recording import distances, record_trace
from tensortrace.analyze.compare import compare
from tensortrace.tracer.engines import llama_cpp
from tensortrace.tracer.gguf import Model
from tensortrace.tracer.importer import Options, import_dump
from tensortrace.tracer.names import Key
from tensortrace.tracer.trace import Trace

pytestmark = pytest.mark.llamacpp
IDS = (84, 104, 101, 32, 259, 260, 271, 97, 98, 99, 5, 17, 250)
N_NEW = 4


def exact(model: Path, folder: Path, **options) -> Trace:
    loaded = Model(model)
    engine = llama_cpp.Engine(None, loaded, **options)
    return golden.record_engine(engine, loaded, folder / "exact.h5", IDS, n_new=N_NEW)


def printed(model: Path, folder: Path, ids: np.ndarray, name: str = "log", **options) -> Trace:
    prompt, generated = ids[: len(IDS)].tolist(), ids[len(IDS) :].tolist()
    print_run(model, prompt, generated, folder / f"{name}.log", **options)
    options = Options(model=Model(model), tokens=tuple(ids.tolist()))
    import_dump(folder / f"{name}.log", folder / f"{name}.h5", options)
    return Trace(folder / f"{name}.h5")


@pytest.mark.parametrize("qtype", [None, "Q8_0", "Q4_1"])
def test_what_it_prints_is_what_it_computes(tmp_path: Path, qtype: str | None) -> None:
    model = write_gguf(tmp_path / "m.gguf", qtype=qtype)
    truth = exact(model, tmp_path)
    log = printed(model, tmp_path, truth.tokens)
    assert [(s.phase, s.start, s.n_tokens) for s in log.steps] == [
        (s.phase, s.start, s.n_tokens) for s in truth.steps
    ]
    for found in (compare(truth, log), compare(log, truth)):
        assert found.exit_code == 0, found.sentence
        assert found.coverage["compared"] == N_NEW * len(set(log.tensors) & set(truth.tensors))
        assert max(row.nrmse for row in found.rows()) < 1e-6
        assert {"q", "k_rope", "v", "scores", "probs", "attn", "resid_out", "logits"} <= {
            row.tensor for row in found.rows()
        }


def test_it_agrees_with_our_own_engine(tmp_path: Path) -> None:
    model = write_gguf(tmp_path / "m.gguf")
    record_trace(model, tmp_path / "cpu.h5", IDS, n_new=N_NEW)
    with Trace(tmp_path / "cpu.h5") as ours:
        found = compare(ours, printed(model, tmp_path, ours.tokens))
    assert found.exit_code == 0, found.sentence


def test_a_rotated_attention_output_is_not_taken_for_attn(tmp_path: Path) -> None:
    """With a quantised cache `kqv_out` is rotated, as V in the cache; a node of no name turns it back."""
    model = write_gguf(tmp_path / "m.gguf", head_dim=64)
    options = {"kv": "q8_0", "flash": True}
    truth, plain = (
        exact(model, tmp_path, **options),
        record_trace(model, tmp_path / "cpu.h5", IDS, n_new=N_NEW),
    )
    log = printed(model, tmp_path, truth.tokens, **options)
    assert Key(0, "attn") not in log
    assert Key(0, "attn") in truth
    assert compare(truth, log).exit_code == 0
    with Trace(plain.path) as ours:
        assert max(distances(truth, ours, "attn").values()) < 5e-2


FAULTS = {
    "a norm that adds 1 to its gain": ("blk.1.attn_norm.weight", lambda w: w + 1, Key(1, "attn_norm")),
    "a transposed projection": ("blk.0.attn_output.weight", lambda w: w.T.copy(), Key(0, "attn_out")),
    "one row of a weight": (
        "blk.1.ffn_up.weight",
        lambda w: np.where(np.arange(len(w))[:, None] == 40, 0, w),
        Key(1, "up"),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_run_is_caught(tmp_path: Path, fault: str) -> None:
    """The last of them does not show in any printed value of the tensor: its sum tells."""
    name, change, first = FAULTS[fault]
    model = write_gguf(tmp_path / "m.gguf")
    truth = exact(model, tmp_path)
    bad = golden.rewrite(
        model, tmp_path / "bad.gguf", lambda weights: {**weights, name: change(weights[name])}
    )
    log = printed(bad, tmp_path, truth.tokens, "bad")
    for found in (compare(log, truth), compare(truth, log)):
        assert (found.exit_code, found.first.key) == (1, first), found.sentence
