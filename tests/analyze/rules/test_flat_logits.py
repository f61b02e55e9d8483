import numpy as np
from rule_traces import found, spec, write
from tensortrace.tracer.stats import specs, summarize


def test_an_output_head_that_is_empty(record_tiny):
    def without_head(graph):
        return graph.replace(
            lambda op: op.wrapped(lambda f: lambda *a, **k: f(*a, **k) * 0) if op.out.name == "logits" else op
        )

    (finding,) = found(record_tiny(n_new=3, change=without_head), "flat_logits")
    assert (finding.severity, finding.step, finding.value) == ("error", 0, 0)
    assert finding.evidence["steps"] == "0-2"


def test_quiet_on_a_model_and_on_its_statistics(record_tiny):
    assert not found(record_tiny(n_new=3), "flat_logits")
    assert not found(record_tiny(n_new=3, stats_only=True), "flat_logits")


def test_of_statistics(tmp_path):
    logits = np.full((12, 40), -3.0, np.float32)
    declared = spec("logits", logits)
    made = {k.name: values for k, values in summarize(declared, logits).items()}
    more = {s.key.name: {"axes": s.axes} for s in specs(declared)}
    (finding,) = found(write(tmp_path / "t.h5", made, declared=more), "flat_logits")
    assert "12 of 12 tokens" in finding.message
