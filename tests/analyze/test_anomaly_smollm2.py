"""The rules on the real model: silent on healthy traces, and each fault found by the rules that should."""

from pathlib import Path

import numpy as np
import pytest
from recording import record_trace
from rule_traces import found
from tensortrace.analyze.anomaly import find_anomalies
from tensortrace.analyze.cause import Injection
from tensortrace.tracer.tokenizer import Tokenizer
from tensortrace.tracer.trace import Trace

pytestmark = pytest.mark.slow

QUESTION = "What is the capital of France?"
TEXT = (
    "The history of the steam engine begins long before James Watt. In the first century, Hero of Alexandria "
    "described a small device that spun when water was heated inside it. For many centuries nobody found a "
    "use for it. In 1698 Thomas Savery patented a pump that raised water by fire, meant to drain mines. "
)


@pytest.fixture(scope="module")
def ids(smollm2_model):
    """Token ids of a text, or of a question in the chat template."""
    tokenizer = Tokenizer(smollm2_model.metadata)

    def encode(text: str, chat: bool = False) -> list[int]:
        if not chat:
            return tokenizer.encode(text)
        return tokenizer.encode(tokenizer.chat([{"role": "user", "content": text}]), add_special=False)

    return encode


@pytest.fixture(scope="module")
def healthy(smollm2_model, ids, tmp_path_factory) -> Trace:
    path = tmp_path_factory.mktemp("healthy") / "h.h5"
    record_trace(smollm2_model, path, ids(QUESTION, chat=True), n_new=8)
    return Trace(path)


@pytest.fixture
def record(smollm2_model, ids, tmp_path):
    def recorded(prompt, fault: str = "", **request) -> Trace:
        change = Injection.parse(fault).apply if fault else lambda graph: graph
        tokens = ids(QUESTION, chat=True) if prompt is None else prompt
        record_trace(smollm2_model, tmp_path / "t.h5", tokens, change=change, **request)
        return Trace(tmp_path / "t.h5")

    return recorded


def serious(report):
    return [(f.rule, f.severity, f.layer, f.message) for f in report.findings if f.severity != "info"]


@pytest.mark.parametrize(
    ("prompt", "options"),
    [
        ("The capital of France is", {"n_new": 24}),
        ("日本語のテキスト 🙂🙂 Ελληνικά", {"n_new": 6}),
        ("yes yes yes yes yes yes yes yes", {"n_new": 6}),
        (TEXT, {"n_new": 4, "chunk": 20}),
        (TEXT, {"n_new": 4, "tile": 16, "softmax": "two-pass"}),
        (None, {"n_new": 8, "storage": "float16"}),
        (None, {"n_new": 8, "storage": "bfloat16"}),
        (None, {"n_new": 8, "stats_only": True}),
    ],
)
def test_healthy_texts(record, ids, healthy, smollm2_model, prompt, options):
    trace = record(prompt and ids(prompt), **options)
    assert serious(find_anomalies(trace, healthy, smollm2_model)) == []


@pytest.mark.parametrize("token", [1, 504])
def test_a_prompt_of_one_token(record, smollm2_model, token):
    assert serious(find_anomalies(record([token], n_new=4), None, smollm2_model)) == []


def test_512_tokens(record, ids, smollm2_model):
    tokens = (ids(TEXT) * 8)[:512]
    assert serious(find_anomalies(record(tokens, n_new=2), None, smollm2_model)) == []


@pytest.mark.parametrize(
    ("fault", "layer", "rules"),
    [
        ("norm_plus_one", 0, {"norm_gain", "magnitude_weights", "magnitude_baseline", "score_range"}),
        ("norm_plus_one@15", 15, {"norm_gain", "magnitude", "softmax_saturation", "residual_growth"}),
        ("attn_scale", 0, {"scores_qk", "score_range", "softmax_saturation", "magnitude_baseline"}),
        ("attn_scale@15", 15, {"scores_qk", "score_range", "softmax_saturation"}),
        ("causal_mask@3", 3, {"causal"}),
        ("gqa_map@3", 3, {"scores_qk"}),
        ("kv_slot@3", 3, {"scores_qk"}),
        ("softmax_no_max@3", 3, {"ml_scores", "final_tile"}),
        ("qkv_bias", 0, {"magnitude_weights", "repetition"}),
    ],
)
def test_faults(record, healthy, smollm2_model, fault, layer, rules):
    report = find_anomalies(record(None, fault, n_new=16), healthy, smollm2_model)
    named = {f.rule for f in report.findings if f.severity != "info"}
    assert named >= rules
    assert report.exit_code == 1
    assert report.first.layer == layer


@pytest.mark.parametrize("fault", ["norm_plus_one", "attn_scale"])
def test_statistics_are_enough_for_the_seed_story(record, fault):
    report = find_anomalies(record(None, fault, n_new=8, stats_only=True))
    assert {"score_range", "softmax_saturation"} <= {f.rule for f in report.findings}


def test_the_seed_story_in_figures(record, healthy, smollm2_model):
    """|Q| of the first layer jumps from 8 to 57, scores to above 100."""
    trace = record(None, "norm_plus_one", n_new=2)
    (q,) = (f for f in found(trace, "magnitude_weights", model=smollm2_model) if f.tensor == "q")
    assert (q.layer, q.value) == (0, pytest.approx(56.6, abs=0.5))
    assert q.expected.startswith("about 6.96")
    (scores,) = found(trace, "score_range")
    assert scores.evidence["details"][0]["highest"] > 100


def test_overflow_of_two_faults(record, smollm2_model, healthy):
    """Scores of hundreds, exponentiated without their maximum, leave float32: the first place is told."""
    both = [Injection.parse(name) for name in ("norm_plus_one", "softmax_no_max")]
    path = Path(healthy.path).with_name("nan.h5")

    def change(graph):
        for fault in both:
            graph = fault.apply(graph)
        return graph

    with np.errstate(all="ignore"):
        record_trace(smollm2_model, path, list(healthy.prompt_ids), n_new=2, change=change)
    (finding,) = found(Trace(path), "nonfinite")
    assert (finding.layer, finding.tensor, finding.severity) == (0, "l", "error")
