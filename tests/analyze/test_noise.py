"""Thresholds: silence where there is only rounding, and sensitivity where there is more."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from architecture import CASES, TOKENS
from ggufs import write_gguf
from recording import record_trace
from synthetic import write_trace
from tensortrace.analyze import roundoff
from tensortrace.analyze.align import align
from tensortrace.analyze.cause import Injection, with_inputs
from tensortrace.analyze.metrics import measure
from tensortrace.analyze.noise import DIVERGED, INHERITED, Noise
from tensortrace.analyze.wiring import Wiring
from tensortrace.tracer.errors import UserError
from tensortrace.tracer.format import Header, Step, TensorSpec
from tensortrace.tracer.gguf import Model
from tensortrace.tracer.graph import Compute, Graph, Op
from tensortrace.tracer.names import Key
from tensortrace.tracer.selection import Selection
from tensortrace.tracer.trace import Trace
from tensortrace.tracer.writer import TraceWriter


def judge(a: Trace, b: Trace) -> Noise:
    found = align(a, b)
    return Noise(found, measure(found.pieces(), len(found.keys), found.steps))


def faults(noise: Noise) -> list[str]:
    """What is called more than rounding."""
    return [f"{noise.keys[i]} step {s}" for i, s in np.argwhere(noise.status >= INHERITED)]


HEALTHY = {
    "again": {},
    "two-pass": {"softmax": "two-pass"},
    "other tiles": {"tile": 4},
    "chunked": {"chunk": 3},
    "float64": {"dtype": "float64", "storage": "float64"},
    "stored as f16": {"storage": "float16"},
    "stored as bf16": {"storage": "bfloat16"},
}


@pytest.mark.parametrize("first", HEALTHY)
@pytest.mark.parametrize("second", ["again", "float64", "stored as bf16"])
def test_silent_on_healthy_pairs(record_tiny, first, second):
    a = record_tiny(n_new=5, **HEALTHY[first])
    b = record_tiny(ids=a.tokens.tolist(), n_new=1, **HEALTHY[second])
    assert faults(judge(a, b)) == []
    assert faults(judge(b, a)) == []


@pytest.mark.parametrize(
    "names", ["q_rope,k_rope,scores,resid_out", "logits", "resid_out", "scores,m", "m,l"]
)
@pytest.mark.parametrize("variant", ["two-pass", "chunked", "float64"])
def test_silent_with_most_tensors_left_out(record_tiny, names, variant):
    selection = Selection(tensors=names)
    a = record_tiny(n_new=4, selection=selection, **HEALTHY[variant])
    assert faults(judge(a, record_tiny(n_new=4, selection=selection))) == []


@pytest.mark.parametrize("layers", ["1", "0"])
def test_silent_with_layers_left_out(record_tiny, layers):
    selection = Selection(layers=layers)
    a = record_tiny(selection=selection, dtype="float64", storage="float64")
    assert faults(judge(a, record_tiny(selection=selection))) == []


def quantise(op: Op) -> Op:
    """Activations rounded to 8 bits in blocks of 16, as llama.cpp does for quantised weights."""

    def rounded(x: np.ndarray, *rest: np.ndarray) -> tuple:
        blocks = x.reshape(-1, 16)
        step = np.abs(blocks).max(1, keepdims=True) / 127
        return (np.round(blocks / step) * step).reshape(x.shape), *rest

    def halved(*cached: np.ndarray) -> tuple:
        return tuple(array.astype(np.float16).astype(array.dtype) for array in cached)

    wraps = {"linear": rounded, "attention": halved}
    return op.wrapped(with_inputs(wraps[op.kind])) if op.kind in wraps else op


def as_llama_cpp(trace: Trace) -> Trace:
    trace.header = Header(engine="llama.cpp b9999", compute_dtype="float32")
    return trace


def change(*changes: Callable[[Op], Op] | str) -> Callable[[Graph], Graph]:
    def apply(graph: Graph) -> Graph:
        for each in changes:
            graph = Injection.parse(each).apply(graph) if isinstance(each, str) else graph.replace(each)
        return graph

    return apply


def test_quantised_activations_are_rounding_where_they_are_declared(record_tiny):
    ours, reference = record_tiny(n_new=4, change=change(quantise)), record_tiny(n_new=4)
    reference = record_tiny(ids=ours.tokens.tolist(), n_new=1)
    assert faults(judge(as_llama_cpp(ours), reference)) == []
    ours.header = Header(engine="cpu", settings={"activation": "f32"})
    assert judge(ours, reference).first() is not None


def test_a_fault_shows_through_quantised_activations(record_tiny):
    ours = record_tiny(n_new=1, change=change("rope_theta=300", quantise))
    noise = judge(as_llama_cpp(ours), record_tiny(n_new=1))
    index, _ = noise.first()
    assert noise.keys[index] == Key(0, "q_rope")


@pytest.mark.parametrize("storage", ["float32", "float16", "bfloat16"])
def test_what_follows_a_fault_inherits_it(record_tiny, storage):
    ours = record_tiny(n_new=3, change=change("attn_scale@0=0.5"), storage=storage)
    noise = judge(ours, record_tiny(n_new=3, storage=storage))
    alone = {noise.keys[i] for i, _ in np.argwhere(noise.status == DIVERGED)}
    assert alone == {Key(0, "scores")}
    assert (noise.status == INHERITED).sum() > 20


def test_two_faults_are_both_found(record_tiny):
    ours = record_tiny(n_new=1, change=change("norm_eps@0,attn_norm=3e-5", "rope_pairing@1"))
    noise = judge(ours, record_tiny(n_new=1))
    alone = {noise.keys[i] for i, _ in np.argwhere(noise.status == DIVERGED)}
    assert {Key(0, "attn_norm"), Key(1, "q_rope"), Key(1, "k_rope")} <= alone


def test_a_tiny_fault_is_named_where_inputs_agree_to_the_bit(record_tiny):
    noise = judge(record_tiny(n_new=1, change=change("norm_eps=1.2e-5")), record_tiny(n_new=1))
    index, step = noise.first()
    assert (noise.keys[index], step) == (Key(0, "attn_norm"), 0)
    assert noise.noise[index, step] < 1e-6


def test_one_factor_on_scores_is_no_rounding_however_noisy_they_are(record_tiny):
    ours = as_llama_cpp(record_tiny(n_new=1, change=change("attn_scale=0.27", quantise)))
    noise = judge(ours, record_tiny(n_new=1))
    index, _ = noise.first()
    assert noise.keys[index] == Key(0, "scores")


@pytest.mark.parametrize("values", [np.nan, np.inf])
def test_not_finite_on_one_side_is_never_rounding(tmp_path, values):
    b = np.ones((3, 4), np.float32)
    a = b.copy()
    a[1, 1] = values
    key = Key(0, "resid_out")
    noise = judge(write_trace(tmp_path / "a.h5", {key: a}), write_trace(tmp_path / "b.h5", {key: b}))
    assert noise.status[0, 0] == DIVERGED


def same_one_by_one(noise: Noise) -> None:
    """The judgement holds however it was come by."""
    kept = [figures.copy() for figures in (noise.noise, noise.added, noise.status)]
    noise._judge_one_by_one()
    for before, now in zip(kept, (noise.noise, noise.added, noise.status)):
        assert np.array_equal(before, now, equal_nan=before.dtype.kind == "f")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_layers_at_once_are_judged_as_one_by_one(tmp_path, case):
    model = Model(write_gguf(tmp_path / "m.gguf", case.arch, **case.shape))
    for path, settings in (("a.h5", {}), ("b.h5", HEALTHY["float64"])):
        record_trace(model, tmp_path / path, TOKENS, n_new=3, **settings)
    with Trace(tmp_path / "a.h5") as a, Trace(tmp_path / "b.h5") as b:
        noise = judge(a, b)
        assert noise._judge_layers_at_once() or "expert_ids" in {key.name for key in noise.keys}
        same_one_by_one(noise)


@pytest.mark.parametrize(
    "other",
    [
        {"change": change("attn_scale@1=0.5")},
        {"selection": Selection(tensors="q,k,scores")},
        {"selection": Selection(tokens="0-1")},
        {"stats_only": True},
    ],
    ids=["diverged", "some tensors", "some tokens", "statistics"],
)
def test_layers_are_judged_one_by_one_where_errors_are_not_all_measured(record_tiny, other):
    assert not judge(record_tiny(n_new=3, **other), record_tiny(n_new=3))._judge_layers_at_once()


@pytest.mark.parametrize("reads", [1, 2])
def test_a_tensor_does_not_excuse_itself(tmp_path, reads):
    """Neither by reading itself nor by reading what comes after it, as a file may claim."""
    keys = [Key(0, "x"), Key(0, "y"), Key(0, "z")]
    inputs = {keys[0]: (), keys[1]: (keys[reads],), keys[2]: (keys[0],)}
    specs = [TensorSpec(key, ("token", "dim"), {"dim": 4}, inputs=inputs[key]) for key in keys]
    for name, off in (("a.h5", 1e-3), ("b.h5", 0.0)):
        with TraceWriter(tmp_path / name, Header("test"), specs, [Step(0, "prefill", 0, 2)]) as writer:
            for key in keys:
                writer.write(0, key, np.full((2, 4), 1 + (off if key != keys[0] else 0), np.float32))
            writer.end_step(0)
    noise = judge(Trace(tmp_path / "a.h5"), Trace(tmp_path / "b.h5"))
    assert noise.first() == (1, 0)


def test_explanation_adds_up(record_tiny):
    noise = judge(record_tiny(dtype="float64"), record_tiny())
    for key in noise.keys:
        head, *parts, last = noise.explain(key, 0).splitlines()
        total = float(re.search(r"threshold ([\d.e+-]+)", head)[1])
        assert sum(float(part.split()[0]) for part in parts) == pytest.approx(total, rel=0.2, abs=1e-9)
        assert last.endswith(("rounding", "match"))
    assert "matrix product over 64 terms" in noise.explain(Key(1, "q"), 0)
    assert "from L01 attn_norm" in noise.explain(Key(1, "q"), 0)


@pytest.mark.parametrize(("key", "step"), [(Key(7, "q"), 0), (Key(0, "q"), 99)])
def test_nothing_to_explain(record_tiny, key, step):
    trace = record_tiny()
    with pytest.raises(UserError, match="was not compared"):
        judge(trace, trace).explain(key, step)


def test_names_outside_the_vocabulary_and_circular_inputs(tmp_path):
    """A file may say anything of what its tensors are computed from."""
    keys = [Key(0, "x\x1b"), Key(0, "y"), Key(None, "z")]
    inputs = {keys[0]: (keys[1],), keys[1]: (keys[0], Key(9, "gone")), keys[2]: (keys[2],)}
    specs = [TensorSpec(key, ("token", "dim"), {"dim": 4}, inputs=inputs[key]) for key in keys]
    with TraceWriter(tmp_path / "t.h5", Header("test"), specs, [Step(0, "prefill", 0, 2)]) as writer:
        for key in keys:
            writer.write(0, key, np.ones((2, 4), np.float32))
        writer.end_step(0)
    noise = judge(Trace(tmp_path / "t.h5"), Trace(tmp_path / "t.h5"))
    assert faults(noise) == []
    assert "\x1b" not in noise.explain(keys[0], 0)


def test_statistics_are_judged_too(record_tiny):
    def recorded(**kwargs) -> Trace:
        return record_tiny(n_new=3, stats_only=True, **kwargs)

    assert faults(judge(recorded(softmax="two-pass"), recorded())) == []
    assert faults(judge(recorded(dtype="float64"), recorded())) == []
    noise = judge(recorded(change=change("attn_scale@0")), recorded())
    index, _ = noise.first()
    assert noise.keys[index] == Key(0, "scores.stats")


@pytest.mark.parametrize("storage", ["float32", "bfloat16"])
def test_where_another_expert_may_be_chosen_its_rows_may_be_others(tmp_path: Path, storage: str) -> None:
    """Decode steps that take the next best expert: innocent where the routers are only nearly equal."""
    case = next(case for case in CASES if case.arch == "qwen3moe")
    model = Model(write_gguf(tmp_path / "m.gguf", case.arch, **case.shape))

    def next_best(compute: Compute) -> Compute:
        def choose(router: np.ndarray, *, k: int) -> np.ndarray:
            ids = compute(router, k=k)
            ids[:, -1] = compute(router, k=k + 1)[:, -1] if len(router) == 1 else ids[:, -1]
            return ids

        return choose

    def change(graph: Graph) -> Graph:
        chosen = Key(0, "expert_ids")
        return graph.replace(lambda op: op.wrapped(next_best) if op.out == chosen else op)

    record_trace(model, tmp_path / "a.h5", TOKENS, n_new=4, change=change, storage=storage)
    record_trace(model, tmp_path / "b.h5", TOKENS, n_new=4)
    with Trace(tmp_path / "a.h5") as a, Trace(tmp_path / "b.h5") as b:
        noise = judge(a, b)
    first = noise.first()
    if storage == "float32":
        assert first is not None
        assert noise.keys[first[0]] == Key(0, "expert_ids")
    else:
        assert first is None or noise.keys[first[0]].name in ("expert_weights", "ffn_out")


def test_wiring_finds_the_nearest_recorded_tensors():
    recorded = [Key(0, "resid_out"), Key(1, "q_rope"), Key(1, "attn"), Key(None, "logits")]
    specs = {key: TensorSpec(key, ("token", "dim"), {"dim": 4}) for key in recorded}
    wiring = Wiring(specs, specs, layers=2)
    found, missing = wiring.nearest(Key(1, "q_rope"), specs)
    assert found == [Key(0, "resid_out")]
    assert missing == [Key(1, "q"), Key(1, "attn_norm")]
    assert wiring.inputs(Key(1, "attn")) == (Key(1, "probs"), Key(1, "v"))
    assert wiring.inputs(Key(None, "final_norm")) == (Key(1, "resid_out"),)
    assert wiring.kind(Key(1, "unheard_of")) == "other"


def test_roundoff_of_types():
    assert roundoff.storage("float32", np.array([1.0]), 1) == pytest.approx(2**-24, rel=1e-6)
    assert roundoff.storage("int32", np.array([1.0]), 1) == 0
    # values as small as float16's smallest numbers lose half of one of them
    assert roundoff.storage("float16", np.array([1e-6]), 1)[0] > 0.02
    assert roundoff.product(roundoff.F32, 576, 1.0) < 2e-6
    assert roundoff.Precision.of(Header("llama.cpp")).product == roundoff.QUANTISED
    assert roundoff.Precision.of(Header("llama.cpp", settings={"activation": "f32"})).product == roundoff.F32
    assert roundoff.Precision.of(Header("x", compute_dtype="nonsense")).other == roundoff.F32
