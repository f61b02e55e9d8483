import json
import os
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from ggufs import write_gguf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from rule_traces import HEADER, attention, found, write
from tensortrace.analyze.anomaly import SEVERITIES, find_anomalies, ranges
from tensortrace.analyze.cause import Injection
from tensortrace.analyze.rule import Rule, figure, rules
from tensortrace.analyze.rules import scores_qk
from tensortrace.tracer.cli.console import _strict
from tensortrace.tracer.format import ROW_AXES, TensorSpec, plan_steps
from tensortrace.tracer.gguf import Model
from tensortrace.tracer.names import NAMES, Key
from tensortrace.tracer.trace import Trace
from tensortrace.tracer.writer import TraceWriter


def test_every_rule_is_documented_and_ranked():
    assert len(rules()) >= 23
    for name, rule in rules().items():
        assert rule.id == name
        assert rule.severity in SEVERITIES
        assert len(rule.__doc__.splitlines()) >= 3, name
        assert rule.__module__.endswith(f"rules.{name}")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"n_new": 20},
        {"n_new": 5, "stats_only": True},
        {"n_new": 5, "storage": "float16"},
        {"n_new": 5, "storage": "bfloat16"},
        {"n_new": 5, "chunk": 3},
        {"n_new": 5, "softmax": "two-pass", "tile": 4},
        {"dtype": "float64", "storage": "float64"},
    ],
)
def test_healthy_traces_have_no_findings(record_tiny, tiny_model, options):
    report = find_anomalies(record_tiny(range(40, 60), **options), record_tiny(n_new=9), tiny_model)
    assert [f for f in report.findings if f.severity != "info"] == []
    assert report.exit_code == 0
    assert len(report.run) >= 17


def test_a_fault_is_found_and_the_first_place_named(record_tiny, tiny_model):
    report = find_anomalies(
        record_tiny(n_new=4, change=Injection.parse("norm_plus_one@1").apply), None, tiny_model
    )
    assert report.exit_code == 1
    assert (report.first.step, report.first.layer, report.first.tensor) == (0, 1, "attn_norm")
    severities = [SEVERITIES.index(f.severity) for f in report.findings]
    assert severities == sorted(severities)


def test_one_finding_for_all_layers_and_steps(record_tiny):
    (finding,) = found(record_tiny(n_new=6, change=Injection.parse("attn_scale").apply), "scores_qk")
    assert finding.evidence["layers"] == "0-1"
    assert finding.evidence["steps"] == "0-5"
    assert len(finding.evidence["details"]) == finding.evidence["places"] == 4  # two layers, two phases


def test_json(record_tiny, tiny_model):
    trace = record_tiny(n_new=4, change=Injection.parse("attn_scale").apply)
    report = find_anomalies(trace, None, tiny_model)
    data = json.loads(json.dumps(_strict(report.to_json())))
    assert set(data["findings"][0]) == {
        *("rule", "severity", "step", "layer", "tensor", "message", "value", "expected", "evidence")
    }
    ran, not_run = set(data["rules"]["run"]), data["rules"]["skipped"]
    assert ran | set(not_run) == set(rules())
    assert not ran & set(not_run)
    assert not_run["magnitude_baseline"] == "needs --baseline"
    assert (data["tokens"], data["steps"], data["complete"]) == (13, 4, True)


def test_what_cannot_be_judged_is_said(tmp_path):
    report = find_anomalies(write(tmp_path / "t.h5", {"probs": attention()["probs"]}))
    assert report.skipped["ml_scores"] == "m not recorded"
    assert report.skipped["score_range"] == "scores or scores.stats not recorded"
    assert report.skipped["norm_gain"] == "needs --model"
    assert "probs_sum" in report.run


def test_an_empty_trace_is_no_clean_bill(tmp_path):
    spec = TensorSpec(Key(None, "logits"), NAMES["logits"].axes, {"vocab": 8})
    TraceWriter(tmp_path / "t.h5", HEADER, [spec], plan_steps(3, 2)).close()
    report = find_anomalies(Trace(tmp_path / "t.h5"))
    assert (report.exit_code, report.run, report.first) == (2, [], None)
    assert set(report.skipped) == set(rules())


def test_another_model_proves_nothing(tmp_path, record_tiny):
    other = Model(write_gguf(tmp_path / "other.gguf", seed=5))
    report = find_anomalies(record_tiny(n_new=2), None, other)
    assert "SHA-256" in report.skipped["norm_gain"]
    assert report.exit_code == 0


def test_a_model_of_an_unknown_architecture_is_no_obstacle(tmp_path):
    model = Model(write_gguf(tmp_path / "m.gguf", "mamba"))
    report = find_anomalies(write(tmp_path / "t.h5", attention()), None, model)
    assert "mamba" in report.skipped["magnitude_weights"]
    assert report.exit_code == 0


def test_a_recording_that_was_cut_short(tmp_path):
    """Only the prefill was flushed, and of the next step one tensor was written."""
    arrays = attention()
    specs = [TensorSpec(Key(0, n), NAMES[n].axes, {"head": 4, "dim": 16}) for n in ("q", "attn")]
    writer = TraceWriter(tmp_path / "t.h5", HEADER, specs, plan_steps(12, 3))
    writer.write_tokens(0, range(12))
    for name in ("q", "attn"):
        writer.write(0, Key(0, name), arrays[name])
    writer.end_step(0)
    writer.write(1, Key(0, "q"), np.full((1, 4, 16), np.nan, np.float32))
    writer.close()
    report = find_anomalies(Trace(tmp_path / "t.h5"))
    assert not report.trace.complete
    assert {f.rule for f in report.findings} <= {"nonfinite"}


def test_memory_stays_that_of_one_tensor(tmp_path):
    """Scores and probabilities of 8 layers: 75 MB in the file."""
    arrays = attention(tokens=512, heads=8, kv_heads=2, seed=1)
    many = {f"{layer} {name}": arrays[name] for layer in range(8) for name in ("scores", "probs", "m", "l")}
    trace = write(tmp_path / "t.h5", many, n_prompt=512)
    tracemalloc.start()
    try:
        find_anomalies(trace)
        assert tracemalloc.get_traced_memory()[1] < 4 * arrays["scores"].nbytes
    finally:
        tracemalloc.stop()
    assert os.path.getsize(tmp_path / "t.h5") > 7e7


floats = hnp.arrays(
    np.float32,
    st.just(64),
    elements=st.floats(width=32, allow_nan=True, allow_infinity=True, allow_subnormal=True),
)


ODD_NAMES = ("q.stats", "q.l2", "scores.stats", "resid_out.hist", "[b]\x1b")
ODD_AXES = (
    ("token",),
    ("token", "dim"),
    ("token", "head"),
    ("head", "query"),
    ("head", "query", "stat"),
    ("dim", "tile"),
    ("key",),
)


@st.composite
def traces(draw):
    """Specs under known and unknown names, with right and wrong axes, and what to write of them."""
    specs = []
    for name in draw(st.lists(st.sampled_from([*NAMES, *ODD_NAMES]), min_size=1, max_size=6, unique=True)):
        axes = draw(st.sampled_from(ODD_AXES + ((NAMES[name].axes,) * 7 if name in NAMES else ())))
        sizes = {axis: draw(st.sampled_from([1, 2, 6])) for axis in axes if axis not in (*ROW_AXES, "key")}
        dtype = draw(st.sampled_from(["float32", "float16", "bfloat16", "float64", "int32", "float8_e4m3fn"]))
        specs.append(TensorSpec(Key(draw(st.sampled_from([None, 0, 3])), name), axes, sizes, dtype))
    steps = plan_steps(draw(st.integers(1, 9)), draw(st.integers(1, 4)), draw(st.sampled_from([None, 2])))
    done = draw(st.integers(0, len(steps)))
    by_row = all({"token", "query"} & set(spec.axes) for spec in specs)  # else there are no rows to choose
    recorded = draw(st.sampled_from([None, [0], [steps[-1].kv_len - 1]])) if by_row else None
    return specs, steps, done, recorded, draw(floats), draw(st.integers(0, 3))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(traces())
def test_nothing_that_can_be_written_crashes_it(tmp_path, tiny_model, drawn):
    specs, steps, done, recorded, values, token = drawn
    path = tmp_path / "t.h5"
    with TraceWriter(path, replace(HEADER, architecture="llama"), specs, steps, recorded=recorded) as writer:
        writer.write_tokens(0, [token * index for index in range(steps[-1].kv_len)])
        for step in steps[:done]:
            for spec in specs:
                with np.errstate(all="ignore"):
                    array = np.resize(values, spec.shape(step.n_tokens, step.kv_len))
                    array = (
                        np.nan_to_num(array, posinf=9, neginf=-9).clip(-9, 9)
                        if spec.dtype[0] == "i"
                        else array
                    )
                    writer.write(step.index, spec.key, array)
            writer.end_step(step.index)
    with Trace(path) as trace:
        report = find_anomalies(trace, trace, tiny_model)
    assert report.exit_code in (0, 1, 2)
    json.dumps(_strict(report.to_json()), allow_nan=False)


def test_ranges():
    assert ranges([3, 4, 5, 9, 3]) == "3-5,9"
    assert ranges([]) == ""


@pytest.mark.parametrize(("value", "text"), [(0.01234, "0.0123"), (8.52, "8.52"), (1284.4, "1,284")])
def test_figure(value, text):
    assert figure(value) == text


def test_a_rule_is_registered_by_being_defined():
    assert Rule.registry["scores_qk"] is scores_qk.ScoresQk
