import numpy as np
import pytest
from ggufs import write_gguf
from recording import record_trace
from rule_traces import found, write
from tensortrace.analyze.cause import Injection
from tensortrace.analyze.expected import expected_length
from tensortrace.tracer.architecture import build_graph
from tensortrace.tracer.gguf import Model
from tensortrace.tracer.names import Key
from tensortrace.tracer.selection import Selection
from tensortrace.tracer.trace import Trace

TOKENS = range(40, 64)


@pytest.mark.parametrize("options", [{}, {"storage": "bfloat16"}, {"stats_only": True}])
def test_quiet_on_a_model(record_tiny, tiny_model, options):
    assert not found(record_tiny(TOKENS, n_new=3, **options), "magnitude_weights", model=tiny_model)


@pytest.fixture(scope="module")
def lopsided(tmp_path_factory) -> Model:
    """Its queries look in one direction only, so that inputs can make them eight times as long as usual."""
    rng = np.random.default_rng(0)
    weight = np.outer(rng.normal(size=64), rng.normal(size=64)).astype(np.float32)
    path = tmp_path_factory.mktemp("model") / "m.gguf"
    return Model(write_gguf(path, tensors={"blk.1.attn_q.weight": weight}))


@pytest.mark.parametrize(("times", "severity"), [(1, None), (3, None), (4.5, "warning"), (9, "error")])
@pytest.mark.parametrize("name", ["q", "q_rope"])
def test_lengths_against_what_the_weights_give(tmp_path, lopsided, name, times, severity):
    expected = expected_length(build_graph(lopsided), lopsided, Key(1, name))
    q = np.zeros((12, 4, 16), np.float32)
    q[..., 0] = expected.typical * times
    findings = found(write(tmp_path / "t.h5", {f"1 {name}": q}), "magnitude_weights", model=lopsided)
    assert [(f.severity, f.layer, f.tensor) for f in findings] == ([(severity, 1, name)] if severity else [])


@pytest.mark.parametrize("stats_only", [False, True])
def test_a_projection_that_is_scaled(record_tiny, tiny_model, stats_only):
    def stretch(graph):
        def wrap(compute):
            return lambda *operands, **params: compute(*operands, **params) * np.float32(8)

        return graph.replace(lambda op: op.wrapped(wrap) if str(op.out) == "L01 k" else op)

    trace = record_tiny(TOKENS, n_new=3, change=stretch, stats_only=stats_only)
    (finding,) = found(trace, "magnitude_weights", model=tiny_model)
    assert (finding.severity, finding.tensor, finding.evidence["steps"]) == ("error", "k", "0-2")


def test_large_biases_are_the_models_nature(tmp_path):
    """Keys ten times as long as without their bias (as in Qwen2) are right where the file says so."""
    rng = np.random.default_rng(0)
    big = {"blk.1.attn_k.bias": rng.normal(size=32).astype(np.float32) * 40}
    model = Model(write_gguf(tmp_path / "m.gguf", bias=True, tensors=big))
    record_trace(model, tmp_path / "t.h5", list(TOKENS), n_new=3)
    trace = Trace(tmp_path / "t.h5")
    for rule in ("magnitude_weights", "magnitude", "score_range"):
        assert not found(trace, rule, model=model)
    fault = Injection.parse("attn_scale").apply
    record_trace(model, tmp_path / "u.h5", list(TOKENS), n_new=3, change=fault)
    assert found(Trace(tmp_path / "u.h5"), "scores_qk", model=model)


def test_of_rotated_vectors_alone(record_tiny, tiny_model):
    trace = record_tiny(TOKENS, n_new=3, selection=Selection(tensors="*_rope"))
    assert not found(trace, "magnitude_weights", model=tiny_model)
