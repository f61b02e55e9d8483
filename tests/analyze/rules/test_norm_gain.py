import pytest
from rule_traces import found, skipped
from tensortrace.analyze.cause import Injection


@pytest.mark.parametrize(
    "options", [{}, {"storage": "float16"}, {"storage": "bfloat16"}, {"stats_only": True}]
)
def test_quiet_on_a_model(record_tiny, tiny_model, options):
    assert not found(record_tiny(n_new=3, **options), "norm_gain", model=tiny_model)


def test_a_gain_taken_as_one_plus_w(record_tiny, tiny_model):
    trace = record_tiny(n_new=3, change=Injection.parse("norm_plus_one@1").apply)
    findings = found(trace, "norm_gain", model=tiny_model)
    assert {(f.severity, f.layer, f.tensor) for f in findings} == {
        ("error", 1, "attn_norm"),
        ("error", 1, "ffn_norm"),
    }
    assert all(f.value > 1.5 for f in findings)


def test_no_norm_at_all(record_tiny, tiny_model):
    """The stream is passed on as it is, ten times as large as a normed one."""

    def skip(graph):
        def wrap(compute):
            return lambda x, gain, **params: x * 10

        return graph.replace(lambda op: op.wrapped(wrap) if op.out.name == "final_norm" else op)

    for options in ({}, {"stats_only": True}):
        (finding,) = found(record_tiny(n_new=3, change=skip, **options), "norm_gain", model=tiny_model)
        assert finding.tensor == "final_norm"


def test_a_norm_that_shrinks(record_tiny, tiny_model):
    trace = record_tiny(n_new=2, change=Injection.parse("norm_eps=100").apply)
    assert {f.tensor for f in found(trace, "norm_gain", model=tiny_model)} >= {"attn_norm", "ffn_norm"}


def test_needs_the_model(record_tiny):
    assert skipped(record_tiny(), "norm_gain") == "needs --model"
