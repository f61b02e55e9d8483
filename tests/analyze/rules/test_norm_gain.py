import numpy as np
import pytest
from ggufs import write_gguf
from recording import record_trace
from rule_traces import found, skipped
from tensortrace.analyze.cause import Injection
from tensortrace.tracer.gguf import Model
from tensortrace.tracer.names import Key
from tensortrace.tracer.trace import Trace


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


def test_quiet_where_a_block_adds_next_to_nothing(tmp_path):
    """As in Gemma 3: the norm behind the block sees less than its eps."""

    def quieten(weights):
        name = "blk.1.ffn_down.weight"
        return weights | {name: weights[name] * np.float32(1e-3)}

    path = write_gguf(tmp_path / "m.gguf", "gemma3", qk_norm=True, post_norms=True, change=quieten)
    record_trace(path, tmp_path / "a.h5", n_new=3)
    with Trace(tmp_path / "a.h5") as trace:
        assert (trace.read(Key(1, "ffn_post_norm"), 0) ** 2).mean() < 0.3
        assert not found(trace, "norm_gain", model=Model(path))


def test_needs_the_model(record_tiny):
    assert skipped(record_tiny(), "norm_gain") == "needs --model"
