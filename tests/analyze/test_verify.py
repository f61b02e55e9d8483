"""One trace against its own replay: silence on healthy engines, every fault found in the right operations."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from engine_golden import FOLDER, record_engine
from ggufs import write_gguf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from injected import blamed, faulty_ops, inject
from recording import record_trace
from tensortrace.analyze.cause import Injection
from tensortrace.analyze.find import causes_of, verify_and_explain
from tensortrace.analyze.noise import DIVERGED, INHERITED
from tensortrace.analyze.verify import verify
from tensortrace.tracer.architecture import build_graph
from tensortrace.tracer.errors import UserError
from tensortrace.tracer.format import Header
from tensortrace.tracer.gguf import Model
from tensortrace.tracer.importer import Options, import_dump
from tensortrace.tracer.names import Key
from tensortrace.tracer.selection import Selection
from tensortrace.tracer.trace import Trace
from tensortrace.tracer.writer import TraceWriter

Record = Callable[..., Trace]

FAULTS = {  # the first tensor that is wrong by itself
    "attn_scale=0.5": "scores",
    "rope_pairing": "q_rope",
    "rope_theta=500000": "q_rope",
    "rope_position": "q_rope",
    "causal_mask": "scores",
    "gqa_map": "scores",
    "norm_eps=1e-1": "attn_norm",
    "norm_plus_one@attn_norm": "attn_norm",
    "qkv_bias": "q",
    "kv_slot": "scores",
    "dequant_layout@q": "q",
    "norm_placement": "resid_mid",
}
HEALTHY = {
    "float32": {},
    "two-pass softmax": {"softmax": "two-pass"},
    "small tiles": {"tile": 4},
    "in chunks": {"chunk": 3},
    "float64": {"dtype": "float64", "storage": "float64"},
    "stored as f16": {"storage": "float16"},
    "stored as bf16": {"storage": "bfloat16", "tile": 3},
}
STORED = [
    "embd",
    "attn_norm",
    "q",
    "k",
    "v",
    "q_rope",
    "k_rope",
    "scores",
    "m_tiles",
    "l_tiles",
    "m",
    "l",
    "probs",
    "attn",
    "attn_out",
    "resid_mid",
    "ffn_norm",
    "gate",
    "up",
    "act",
    "ffn_out",
    "resid_out",
    "final_norm",
    "logits",
]


# ---- healthy


@pytest.mark.parametrize("how", HEALTHY)
@pytest.mark.parametrize("tensors", [None, "q_rope,k_rope,scores,resid_out", "q,scores,logits", "logits"])
def test_silent_on_healthy_traces(
    record_tiny: Record, tiny_model: Model, how: str, tensors: str | None
) -> None:
    selection = Selection(tensors=tensors)
    found = verify(record_tiny(n_new=4, selection=selection, **HEALTHY[how]), tiny_model)
    assert (found.verdict, found.exit_code, found.causes) == ("rounding", 0, [])
    assert found.coverage["only_a"] == found.coverage["incomparable"] == 0
    assert found.judged.excess.max() < 0.7  # with room to spare


@pytest.mark.parametrize("name", ["torch.h5", "llama_cpp.h5"])
def test_silent_on_other_engines(smollm2: Path, name: str) -> None:
    """Real runs of transformers, and of llama.cpp with 8-bit activations and a KV cache in float16."""
    found = verify(Trace(FOLDER / name), Model(smollm2, memory=1 << 28))
    assert (found.verdict, found.coverage["only_a"]) == ("rounding", 0)
    assert found.judged.excess.max() < 0.7
    assert found.resolution["longest"] > 100  # all the layers between two recorded ones at once


@pytest.mark.parametrize("name", ["2024-04-first-three", "2026-03-common-debug", "flash-attention"])
def test_silent_on_what_llama_cpp_prints(tmp_path: Path, name: str) -> None:
    """Six values of a row in four decimals are enough, as long as the tokens are known."""
    model = Model(write_gguf(tmp_path / "m.gguf", layers=1, heads=4, kv_heads=2, head_dim=8, ff=40))
    ids = (84, 104, 101, 32, 259, 260, 271, 97, 59)[: 9 if "common" in name else 8]
    for tokens, verdict in ((ids, "rounding"), ((), "incomparable")):
        options = Options(model=model, tokens=tokens or None)
        import_dump(FOLDER / "logs" / f"{name}.log", tmp_path / f"{verdict}.h5", options)
        found = verify(Trace(tmp_path / f"{verdict}.h5"), model)
        assert found.verdict == verdict
    assert any("the token ids are not known" in note for note in found.notes)


def test_a_printed_log_shows_a_fault(tmp_path: Path) -> None:
    """The same log is no recording of a model with another RoPE base."""
    size = {"layers": 1, "heads": 4, "kv_heads": 2, "head_dim": 8, "ff": 40}
    other = Model(write_gguf(tmp_path / "m.gguf", **size, rope_base=300.0))
    options = Options(model=other, tokens=(84, 104, 101, 32, 259, 260, 271, 97, 59))
    import_dump(FOLDER / "logs" / "2026-03-common-debug.log", tmp_path / "a.h5", options)
    found = verify(Trace(tmp_path / "a.h5"), other)
    assert found.first is not None
    assert found.first.key == Key(0, "q_rope")


@pytest.mark.torch
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_silent_on_torch(smollm2_model: Model, tmp_path: Path, dtype: str) -> None:
    from tensortrace.tracer.engines.torch import Engine

    engine = Engine(build_graph(smollm2_model), smollm2_model, dtype=dtype)
    found = verify(record_engine(engine, smollm2_model, tmp_path / "t.h5", n_new=4), smollm2_model)
    assert (found.verdict, found.coverage["only_a"]) == ("rounding", 0)


@pytest.mark.llamacpp
@pytest.mark.parametrize("options", [{}, {"kv": "f16"}, {"flash": True}, {"kv": "f16", "flash": True}])
def test_silent_on_llama_cpp(smollm2_model: Model, tmp_path: Path, options: dict) -> None:
    from tensortrace.tracer.engines.llama_cpp import Engine

    engine = Engine(build_graph(smollm2_model), smollm2_model, **options)
    found = verify(record_engine(engine, smollm2_model, tmp_path / "t.h5", n_new=4), smollm2_model)
    assert (found.verdict, found.coverage["only_a"]) == ("rounding", 0)


# ---- faulty


@pytest.mark.parametrize("fault", ["softmax_no_max", "norm_eps=1e-3", *(f for f in FAULTS if "eps" not in f)])
def test_a_fault_is_found_and_named(record_tiny: Record, tiny_model: Model, fault: str) -> None:
    found = verify_and_explain(record_tiny(n_new=3, change=inject(fault)), tiny_model)
    assert found.exit_code == 1
    assert found.first.tensor == FAULTS.get(fault, {"softmax_no_max": "m"}.get(fault, "attn_norm"))
    assert found.causes[0].id == Injection.parse(fault).cause.id
    assert found.causes[0].confidence > 0.999
    assert found.evidence
    assert found.to_json()["causes"][0]["fix"]


def test_what_follows_from_a_fault_is_not_blamed(record_tiny: Record, tiny_model: Model) -> None:
    found = verify(record_tiny(n_new=3, change=inject("attn_scale@0=0.5")), tiny_model)
    assert {key for key, _ in found.wrong} == {Key(0, "scores")}
    inherited = {found.keys[i] for i, _ in np.argwhere(found.status == INHERITED)}
    assert inherited == {Key(0, name) for name in ("m_tiles", "l_tiles", "m", "l", "probs", "attn")}
    assert found.first.step == 0
    assert (found.status == DIVERGED).sum() == 3


def test_a_wrong_rotation_of_k_alone_is_one_fault(record_tiny: Record, tiny_model: Model) -> None:
    found = verify_and_explain(record_tiny(change=inject("rope_pairing@1,k_rope")), tiny_model)
    assert [(cause.id, cause.tensor) for cause in found.causes] == [("rope_pairing", "k_rope")]


def test_two_faults_are_both_named(record_tiny: Record, tiny_model: Model) -> None:
    change = inject("norm_eps@0,attn_norm=1e-3", "gqa_map@1", "rope_pairing@1,k_rope")
    found = verify_and_explain(record_tiny(n_new=2, change=change), tiny_model)
    named = {(cause.id, cause.layer, cause.tensor) for cause in found.causes if cause.confidence > 0.99}
    assert named == {
        ("norm_eps", 0, "attn_norm"),
        ("rope_pairing", 1, "k_rope"),
        ("gqa_map", 1, "scores"),
    }


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    fault=st.sampled_from(list(FAULTS)),
    kept=st.permutations(STORED).map(lambda names: names[: len(names) // 2]),
    storage=st.sampled_from(["float32", "float16", "bfloat16"]),
)
def test_a_fault_is_found_with_half_of_the_tensors(
    record_tiny: Record, tiny_model: Model, fault: str, kept: list[str], storage: str
) -> None:
    """The segment that is blamed holds the faulty operation, whatever was left out of the recording."""
    selection = Selection(tensors=",".join(kept))
    with record_tiny(n_new=3, change=inject(fault), selection=selection, storage=storage, tile=4) as trace:
        found = verify(trace, tiny_model)
        trace.path.unlink()
    assert found.exit_code == 1
    assert blamed(found) & faulty_ops(found, fault)


@pytest.mark.parametrize("storage", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("tensors", ["q_rope,k_rope,scores,resid_out", "q,scores,logits"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_with_few_tensors(
    record_tiny: Record, tiny_model: Model, fault: str, tensors: str, storage: str
) -> None:
    selection = Selection(tensors=tensors)
    trace = record_tiny(n_new=3, change=inject(fault), selection=selection, storage=storage)
    found = verify(trace, tiny_model)
    assert found.exit_code == 1
    assert blamed(found) & faulty_ops(found, fault)
    assert "the fault is in one of" in found.sentence


@pytest.mark.parametrize("chunk", [None, 70])
def test_a_missing_mask_shows_beyond_a_block_of_queries(
    record_tiny: Record, tiny_model: Model, chunk: int | None
) -> None:
    ids = [int(i) for i in np.random.default_rng(0).integers(0, 256, 300)]
    selection = Selection(tensors="q_rope,k_rope,scores,probs")
    healthy = record_tiny(ids, selection=selection, chunk=chunk)
    assert verify(healthy, tiny_model).verdict == "rounding"
    values = {
        (key, step.index): np.array(healthy.read(key, step.index))
        for key in healthy.tensors
        for step in healthy.steps
    }
    for step in healthy.steps:
        values[Key(0, "scores"), step.index][0, 0, -1] = 0.0  # one key of the future let through
    found = verify(rewrite(healthy, healthy.path.with_name("wrong.h5"), values), tiny_model)
    assert {key for key, _ in found.wrong} == {Key(0, "scores")}
    assert len(found.wrong) == len(healthy.steps)


def rewrite(
    trace: Trace, path: Path, values: dict[tuple[Key, int], np.ndarray], conventions: dict | None = None
) -> Trace:
    """A copy of a trace that holds other values."""
    specs = [replace(spec, conventions=conventions or spec.conventions) for spec in trace.tensors.values()]
    with TraceWriter(path, trace.header, specs, trace.steps) as writer:
        for step in trace.steps:
            writer.write_tokens(step.start, trace.tokens[step.start : step.kv_len])
            for spec in specs:
                writer.write(step.index, spec.key, values[spec.key, step.index])
            writer.end_step(step.index)
        writer.finish()
    return Trace(path)


def test_the_order_of_rope_pairs_may_be_the_other(record_tiny: Record, tiny_model: Model) -> None:
    """As of an engine that keeps Q and K in the order of the original weights, and says so."""
    trace = record_tiny(n_new=3, selection=Selection(tensors="q,k,q_rope,k_rope"))
    halves = {
        (key, step.index): np.concatenate([array[..., ::2], array[..., 1::2]], -1)
        for step in trace.steps
        for key in trace.tensors
        for array in [trace.read(key, step.index)]
    }
    trace.header = replace(trace.header, engine="theirs")
    stated = rewrite(trace, trace.path.with_name("s.h5"), halves, {"pairing": "half-split"})
    assert verify(stated, tiny_model).verdict == "rounding"
    unstated = rewrite(trace, trace.path.with_name("u.h5"), halves, {"scale": 1.0})
    assert verify(unstated, tiny_model).verdict == "diverged"


# ---- what it says


def test_one_wrong_head_and_one_wrong_token_are_told(record_tiny: Record, tiny_model: Model) -> None:
    trace = record_tiny(n_new=1)
    values = {(key, 0): np.array(trace.read(key, 0)) for key in trace.tensors}
    values[Key(1, "q_rope"), 0][:, 3] *= 1.01
    values[Key(1, "up"), 0][7] += 0.01
    found = verify_and_explain(rewrite(trace, trace.path.with_name("wrong.h5"), values), tiny_model)
    assert any("only in head 3 (of 4)" in text for text in found.evidence)
    assert {str(key) for key, _ in found.wrong} >= {"L01 q_rope", "L01 up"}
    assert [cause.id for cause in found.causes if cause.tensor == "up"] == ["unknown"]


def test_which_operations_are_in_a_segment(record_tiny: Record, tiny_model: Model) -> None:
    few = Selection(tensors="attn_norm,q_rope,resid_out")
    found = verify(record_tiny(selection=few, change=inject("qkv_bias@1,q")), tiny_model)
    assert found.first.key == Key(1, "q_rope")
    assert "does not follow from L01 attn_norm" in found.sentence
    assert "one of 2 operations, L01 q, L01 q_rope" in found.sentence
    assert found.resolution == {"ops": 33, "covered": 31, "alone": 1, "longest": 13}


def test_nothing_verified_is_no_match(record_tiny: Record, tiny_model: Model) -> None:
    found = verify(record_tiny(stats_only=True, selection=Selection(tensors="q,k")), tiny_model)
    assert (found.verdict, found.exit_code, found.first) == ("incomparable", 2, None)
    assert found.coverage["compared"] == 0 < found.coverage["only_a"]


def test_attention_over_tokens_that_were_left_out_is_not_judged(
    record_tiny: Record, tiny_model: Model
) -> None:
    found = verify(record_tiny(n_new=3, selection=Selection(tokens="2-")), tiny_model)
    assert found.verdict == "rounding"
    assert "recorded for some tokens only" in found.recompute.lost[Key(0, "scores")]
    assert found.coverage["only_a"] == 7 * 2 * 3  # what attention gives, of two layers, in three steps


def test_another_model_is_refused_or_told(record_tiny: Record, tmp_path: Path) -> None:
    other = Model(write_gguf(tmp_path / "other.gguf", seed=1))
    found = verify(record_tiny(), other)
    assert any("another model file" in note for note in found.notes)
    assert found.verdict == "diverged"
    trace = record_tiny()
    trace.header = Header("x", architecture="gemma3")
    with pytest.raises(UserError, match="architecture"):
        verify(trace, other)


def test_a_smaller_vocabulary_is_told(tmp_path: Path, record_tiny: Record) -> None:
    embd = np.zeros((100, 64), np.float32)
    small = write_gguf(tmp_path / "s.gguf", tensors={"token_embd.weight": embd})
    with pytest.raises(UserError, match="has token id"):
        verify(record_tiny(), Model(small))


def test_memory_does_not_grow_with_the_trace(tiny: Path, tmp_path: Path) -> None:
    """Blocks of rows: of four blocks one is held at once, beside the keys and values of all."""
    import tracemalloc

    peaks = []
    for tokens in (128, 512):
        path = tmp_path / f"{tokens}.h5"
        ids = [int(i) for i in np.random.default_rng(0).integers(0, 256, tokens)]
        record_trace(tiny, path, ids, selection=Selection(tensors="*norm,gate,up,act,logits"))
        with Trace(path) as trace:
            verify(trace, Model(tiny), workers=1)
            tracemalloc.start()
            verify(trace, Model(tiny), workers=1)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert peaks[1] - peaks[0] < 2_400_000  # bytes


def test_causes_are_those_of_the_side_that_is_named(record_tiny: Record, tiny_model: Model) -> None:
    found = verify(record_tiny(change=inject("gqa_map")), tiny_model)
    assert causes_of(found, "ours")[0].evidence.startswith("ours: gqa_map")
