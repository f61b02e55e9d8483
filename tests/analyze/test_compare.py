"""Whole comparisons: verdicts, the first divergence of every fault, the JSON."""

import json
import math

import numpy as np
import pytest
from recording import PROMPT
from synthetic import write_trace
from tensortrace.analyze.cause import Injection
from tensortrace.analyze.compare import compare
from tensortrace.tracer.names import Key
from tensortrace.tracer.repack import compress
from tensortrace.tracer.trace import Trace

FAULTS = {  # the fault, and the tensor and op that it is put into
    "attn_scale": ("scores", "attention"),
    "causal_mask": ("scores", "attention"),
    "dequant_layout": ("q", "linear"),
    "gqa_map": ("scores", "attention"),
    "kv_slot": ("scores", "attention"),
    "norm_eps": ("attn_norm", "rms_norm"),
    "norm_placement": ("resid_mid", "add"),
    "norm_plus_one": ("attn_norm", "rms_norm"),
    "qkv_bias": ("q", "linear"),
    "rope_pairing": ("q_rope", "rope"),
    "rope_position": ("q_rope", "rope"),
    "rope_theta=500": ("q_rope", "rope"),
    "softmax_no_max": ("m", "attention"),
}
RESID = Key(0, "resid_out")


def values(tokens: int = 5) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((tokens, 8)).astype(np.float32)


@pytest.fixture
def record_faulty(record_tiny):
    def recorded(fault: str, **kwargs) -> Trace:
        injection = Injection.parse(fault)
        ids = injection.cause.change_ids(PROMPT, {"tokenizer.ggml.bos_token_id": 297})
        return record_tiny(ids=ids, change=injection.apply, **kwargs)

    return recorded


@pytest.mark.parametrize("storage", ["float32", "float16"])
@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_found_at_the_op_that_it_was_put_into(
    record_tiny, record_faulty, fault, layer, storage
):
    name, _, value = fault.partition("=")
    if name == "norm_eps" and storage == "float16":
        value = "3e-2"  # the default changes the norm by 5e-6, which float16 does not hold
    tensor, op = FAULTS[fault]
    where = f"{name}@{layer}" + (f"={value}" if value else "")
    found = compare(record_faulty(where, n_new=3, storage=storage), record_tiny(n_new=3, storage=storage))
    assert (found.verdict, found.exit_code) == ("diverged", 1)
    assert (found.first.layer, found.first.tensor, found.first.op) == (layer, tensor, op)
    assert found.first.step == (1 if name == "rope_position" else 0)
    assert found.causes[0].id == "unknown"
    assert found.evidence


def test_a_doubled_bos_is_named(record_tiny, record_faulty):
    for a, b in (
        (record_faulty("tokens_bos"), record_tiny()),
        (record_tiny(), record_faulty("tokens_bos")),
    ):
        found = compare(a, b)
        assert (found.exit_code, found.first.tensor, found.first.op) == (1, "tokens", "tokenizer")
        assert found.causes[0].id == "tokens_bos"
        assert found.causes[0].fix
        json.dumps(found.to_json(), allow_nan=False)


@pytest.mark.parametrize(
    "variant", [{}, {"softmax": "two-pass"}, {"chunk": 3}, {"dtype": "float64"}, {"storage": "float16"}]
)
def test_healthy_pairs_exit_with_0(record_tiny, variant):
    found = compare(record_tiny(n_new=2, **variant), record_tiny(n_new=2))
    assert found.exit_code == 0
    assert found.verdict == ("rounding" if variant else "match")
    assert (found.first, found.causes) == (None, [])


def test_a_file_with_itself(record_tiny):
    trace = record_tiny(n_new=3)
    found = compare(trace, trace)
    assert (found.verdict, found.coverage["compared"]) == ("match", 3 * len(trace.tensors))


def test_different_prompts(record_tiny):
    found = compare(record_tiny(), record_tiny(ids=[*PROMPT[:5], 33, *PROMPT[6:]]))
    assert (found.verdict, found.exit_code) == ("incomparable", 2)
    assert "position 5" in found.sentence
    assert (found.coverage["compared"], list(found.rows())) == (0, [])


@pytest.mark.parametrize(
    "other",
    [
        {"tensors": {Key(None, "logits"): values()}},
        {"tensors": {RESID: values()[:, :5]}},
        {"tensors": {RESID: values()}, "finished": False},
        {"tensors": {RESID: values()}, "tokens": [9, 8, 7, 6, 5]},
    ],
)
def test_nothing_compared_is_never_a_match(tmp_path, other):
    a, b = write_trace(tmp_path / "a", {RESID: values()}), write_trace(tmp_path / "b", **other)
    for found in (compare(a, b), compare(b, a)):
        assert found.exit_code == 2
        assert found.sentence
        assert found.coverage["compared"] == 0


def test_what_one_side_lacks_is_no_fault_but_counted(record_tiny):
    from tensortrace.tracer.selection import Selection

    whole, part = record_tiny(), record_tiny(selection=Selection(tensors="q,k"))
    found = compare(whole, part)
    assert found.verdict == "match"
    assert found.coverage == {
        "compared": 4,
        "only_a": len(whole.tensors) - 4,
        "only_b": 0,
        "incomparable": 0,
    }


def test_tensors_that_cannot_be_compared_do_not_hide_the_others(tmp_path):
    other = Key(1, "resid_out")
    a = write_trace(tmp_path / "a", {RESID: values(), other: values()})
    b = write_trace(tmp_path / "b", {RESID: values() + 1, other: values()[:, :3]})
    found = compare(a, b)
    assert (found.verdict, found.first.key) == ("diverged", RESID)
    assert found.coverage["incomparable"] == 1


def test_another_model_of_the_same_shape_is_compared_and_noted(tmp_path):
    a = write_trace(tmp_path / "a", {RESID: values()}, model_sha256="a" * 64)
    b = write_trace(tmp_path / "b", {RESID: values() + 1}, model_sha256="b" * 64)
    found = compare(a, b)
    assert found.verdict == "diverged"
    assert any("model files differ" in note for note in found.notes)


def test_json_has_the_promised_keys(record_faulty, record_tiny):
    found = compare(record_faulty("softmax_no_max@1", n_new=2), record_tiny(n_new=2))
    report = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert report["verdict"] == "diverged"
    assert report["scenario"] == 3
    assert report["first_divergence"] == {"step": 0, "layer": 1, "tensor": "m", "op": "attention"}
    assert set(report["coverage"]) == {"compared", "only_a", "only_b", "incomparable"}
    assert len(report["tensors"]) == report["coverage"]["compared"]
    assert {"id", "step", "layer", "tensor", "confidence", "evidence", "fix"} <= set(report["causes"][0])
    keys = {"step", "layer", "tensor", "status", "nrmse", "max_abs", "max_rel", "cosine", "scale"}
    assert all(keys | {"mag_a", "mag_b", "added", "noise"} <= set(row) for row in report["tensors"])
    assert {row["status"] for row in report["tensors"]} <= {"match", "rounding", "diverged", "inherited"}
    assert set(report["hypotheses"]) == {"A", "B", "C"}


def test_rows_are_in_order_and_can_be_cut(record_tiny, record_faulty):
    found = compare(record_faulty("attn_scale@1", n_new=3), record_tiny(n_new=3))
    rows = found.rows()
    order = [(row.step, found.alignment.index[row.key]) for row in rows]
    assert order == sorted(order)
    assert found.rows(3, 7) == rows[3:7]
    first = rows[found.position]
    assert (first.key, first.step, first.status) == (found.first.key, found.first.step, "diverged")
    assert all(row.status in ("match", "rounding") for row in rows[: found.position])
    assert first.scale == pytest.approx(4, rel=1e-3)


def test_figures_of_a_known_pair(tmp_path):
    b = values()
    found = compare(write_trace(tmp_path / "a", {RESID: 2 * b}), write_trace(tmp_path / "b", {RESID: b}))
    (row,) = found.rows()
    assert (row.nrmse, row.scale, row.cosine) == pytest.approx((1, 2, 1))
    assert row.max_abs == pytest.approx(np.abs(b).max())
    assert row.mag_a == pytest.approx(math.sqrt(4 * (b.astype(float) ** 2).mean()))
    assert any("2 times the reference" in text for text in found.evidence)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda a: a.__setitem__((slice(None), 1), 0), "only in head 1 (of 3)"),
        (lambda a: a.__setitem__(slice(4, None), -a[4:]), "from token 4 on (of 6)"),
        (lambda a: a.__setitem__((Ellipsis, slice(0, None, 2)), 0), "only in even dims"),
        (lambda a: a.__setitem__((Ellipsis, slice(2, 5)), 0), "only in dims 2 to 4 (of 8)"),
        (lambda a: a.__imul__(np.arange(1, 7)[:, None, None]), "each token has a factor of its own, 1 to 6"),
        (lambda a: a.__iadd__(np.arange(24).reshape(3, 8)), "every token is off by the same offset"),
        (lambda a: a.__setitem__((0, 0, 0), np.nan), "NaN or infinite: 1 elements of ours"),
        (lambda a: a.__imul__(0), "ours is zero throughout"),
    ],
)
def test_the_shape_of_a_difference_is_described(tmp_path, change, said):
    b = np.random.default_rng(1).standard_normal((6, 3, 8))
    a = b.copy()
    change(a)
    key = Key(0, "q")
    found = compare(write_trace(tmp_path / "a", {key: a}), write_trace(tmp_path / "b", {key: b}))
    assert any(said in text for text in found.evidence), found.evidence


def test_what_was_not_recorded_before_the_divergence_is_said(record_tiny, record_faulty):
    from tensortrace.tracer.selection import Selection

    selection = Selection(tensors="attn_norm,q_rope")
    found = compare(record_faulty("rope_pairing", selection=selection), record_tiny(selection=selection))
    assert found.first.key == Key(0, "q_rope")
    assert "L00 q were not recorded: the fault lies anywhere after L00 attn_norm" in found.evidence


@pytest.mark.parametrize("storage", ["float32", "bfloat16"])
def test_a_compressed_trace_compares_as_the_plain_one(record_tiny, tmp_path, storage):
    plain, packed = record_tiny(n_new=4, storage=storage), record_tiny(n_new=4, storage=storage)
    compress(packed.path)
    found = compare(Trace(packed.path), plain)
    assert (found.verdict, found.coverage["compared"]) == ("match", 4 * len(plain.tensors))
    assert compare(plain, Trace(packed.path)).verdict == "match"
