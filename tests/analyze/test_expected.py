import numpy as np
import pytest
from ggufs import write_gguf
from tensortrace.analyze.expected import expected_length
from tensortrace.tracer.architecture import build_graph
from tensortrace.tracer.gguf import Model
from tensortrace.tracer.names import Key


@pytest.fixture(params=[False, True], ids=["no bias", "bias"])
def model(request, tmp_path) -> Model:
    return Model(write_gguf(tmp_path / "m.gguf", bias=request.param, head_dim=16))


@pytest.mark.parametrize("name", ["q", "k", "v", "q_rope", "k_rope"])
def test_normed_inputs_have_these_lengths(model, name):
    """A hundred thousand directionless inputs of unit mean square."""
    expected = expected_length(build_graph(model), model, Key(1, name))
    part = name[0]
    gain = model.weight("blk.1.attn_norm.weight")
    weight = model.weight(f"blk.1.attn_{part}.weight")
    bias = model.weight(f"blk.1.attn_{part}.bias") if f"blk.1.attn_{part}.bias" in model else 0
    x = np.random.default_rng(0).normal(size=(20000, 64)).astype(np.float32)
    x /= np.sqrt((x * x).mean(-1, keepdims=True))
    y = ((x * gain) @ weight.T + bias).reshape(len(x), -1, 16)
    lengths = np.linalg.norm(y, axis=-1)
    np.testing.assert_allclose(np.sqrt((lengths**2).mean(0)), expected.typical, rtol=0.02)
    assert (lengths <= expected.bound * 1.0001).all()


def test_the_bound_is_reached(model):
    expected = expected_length(build_graph(model), model, Key(1, "v"))
    matrix = (model.weight("blk.1.attn_v.weight") * model.weight("blk.1.attn_norm.weight")).reshape(2, 16, 64)
    direction = np.linalg.svd(matrix[0])[2][0]
    y = matrix[0] @ (direction * np.sqrt(64))
    assert np.linalg.norm(y) <= expected.bound[0]
    if "blk.1.attn_v.bias" not in model:
        assert np.linalg.norm(y) == pytest.approx(expected.bound[0], rel=1e-4)


def test_the_first_layer_sees_the_embedding(model):
    expected = expected_length(build_graph(model), model, Key(0, "q"))
    x = model.weight("token_embd.weight")
    x = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * model.weight("blk.0.attn_norm.weight")
    bias = model.weight("blk.0.attn_q.bias") if "blk.0.attn_q.bias" in model else 0
    lengths = np.linalg.norm(
        (x @ model.weight("blk.0.attn_q.weight").T + bias).reshape(len(x), 4, 16), axis=-1
    )
    np.testing.assert_allclose(np.sqrt((lengths**2).mean(0)), expected.typical, rtol=0.1)


@pytest.mark.parametrize("name", ["attn", "attn_out", "gate", "nonsense"])
def test_what_does_not_follow_from_a_norm(model, name):
    assert expected_length(build_graph(model), model, Key(1, name)) is None
