"""The CPU functions that define the ops, in float64, against independent formulations in torch."""

import numpy as np
import pytest
from tensortrace.kernels import (
    add,
    attention,
    clamped_glu,
    embedding,
    expert_linear,
    expert_sum,
    expert_weights,
    gated_add,
    gelu,
    glu,
    layer_norm,
    linear,
    rms_norm,
    rope,
    scale,
    top_k,
)

pytestmark = pytest.mark.torch
TOLERANCE = 1e-12
ROPE_TOLERANCE = 1e-10  # an angle of 100 000 rad has 1.5e-11 between neighbours


@pytest.fixture(scope="module")
def torch():
    import torch

    return torch


def draw(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def assert_same(got, want, tolerance=TOLERANCE):
    np.testing.assert_allclose(np.asarray(got), np.asarray(want), rtol=tolerance, atol=tolerance)


def test_add(torch):
    x, y = draw(3, 8, seed=1), draw(3, 8, seed=2)
    assert_same(add.cpu(x, y), torch.add(torch.tensor(x), torch.tensor(y)))
    assert_same(add.cpu(x, y, scale=0.22), torch.add(torch.tensor(x), torch.tensor(y), alpha=0.22))


def test_gelu(torch):
    x = 3 * draw(4, 50)
    assert_same(gelu.cpu(x), torch.nn.functional.gelu(torch.tensor(x), approximate="tanh"))
    gated = torch.nn.functional.gelu(torch.tensor(x), approximate="tanh") * torch.tensor(x)
    assert_same(glu.cpu(x, x, activation="gelu_tanh"), gated)


def test_scale(torch):
    x = 20 * draw(4, 50)
    assert_same(scale.cpu(x, factor=0.25), torch.tensor(x) / 4)
    assert_same(scale.cpu(x, softcap=30.0), 30 * torch.tanh(torch.tensor(x) / 30))


def test_layer_norm(torch):
    x, gain, bias = draw(5, 64) + 3, draw(64, seed=1), draw(64, seed=2)
    x_, gain_, bias_ = map(torch.tensor, (x, gain, bias))
    want = torch.nn.functional.layer_norm(x_, (64,), gain_, bias_, eps=1e-5)
    assert_same(layer_norm.cpu(x, gain, bias, eps=1e-5), want)


def test_embedding(torch):
    ids, table = np.array([4, 0, 4]), draw(5, 8)
    want = torch.nn.functional.embedding(torch.tensor(ids), torch.tensor(table))
    assert_same(embedding.cpu(ids, table), want)
    assert_same(embedding.cpu(ids, table, scale=8**0.5), want * 8**0.5)


@pytest.mark.parametrize("unknown", [-1, 5])
def test_embedding_refuses_unknown_ids(unknown):
    with pytest.raises(IndexError, match="for a vocabulary of 5"):
        embedding.cpu(np.array([0, unknown]), draw(5, 8))


def test_glu(torch):
    gate, up = 300 * draw(4, 50, seed=1), draw(4, 50, seed=2)
    want = torch.nn.functional.silu(torch.tensor(gate)) * torch.tensor(up)
    assert_same(glu.cpu(gate, up), want)


@pytest.mark.parametrize("heads", [None, 3])
def test_linear(torch, heads):
    x, weight, bias = draw(5, 4, 8, seed=1), draw(6, 32, seed=2), draw(6, seed=3)
    want = torch.nn.functional.linear(torch.tensor(x).flatten(1), torch.tensor(weight), torch.tensor(bias))
    assert_same(linear.cpu(x, weight, bias, heads=heads), want if heads is None else want.view(5, 3, 2))


@pytest.mark.parametrize("shape", [(5, 64), (5, 3, 16)])
def test_rms_norm(torch, shape):
    x, gain = draw(*shape), draw(shape[-1])
    want = torch.nn.functional.rms_norm(torch.tensor(x), shape[-1:], torch.tensor(gain), eps=1e-5)
    assert_same(rms_norm.cpu(x, gain, eps=1e-5), want)


def angles(torch, positions, dims, base, factors):
    frequencies = 1.0 / base ** (torch.arange(0, dims, 2, dtype=torch.float64) / dims)
    if factors is not None:
        frequencies = frequencies / torch.tensor(factors, dtype=torch.float64)
    return torch.outer(torch.tensor(positions, dtype=torch.float64), frequencies)


@pytest.mark.parametrize(("dim", "dims"), [(64, 64), (80, 32)])
@pytest.mark.parametrize("scaled", [False, True])
def test_rope_half_split_is_that_of_transformers(torch, dim, dims, scaled):
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    x, positions = draw(7, 3, dim), np.array([0, 1, 2, 100, 4095, 32_000, 100_000])
    factors = np.linspace(1, 32, dims // 2) if scaled else None
    angle = angles(torch, positions, dims, 1e4, factors)
    doubled = torch.cat([angle, angle], -1)[None]
    heads_first = torch.tensor(x[..., :dims]).transpose(0, 1)[None]
    rotated, _ = apply_rotary_pos_emb(heads_first, heads_first, doubled.cos(), doubled.sin())
    want = np.concatenate([rotated[0].transpose(0, 1).numpy(), x[..., dims:]], -1)
    assert_same(
        rope.cpu(x, positions, factors, base=1e4, dims=dims, pairing="half-split"), want, ROPE_TOLERANCE
    )


@pytest.mark.parametrize(("dim", "dims"), [(64, 64), (80, 32)])
def test_rope_interleaved_is_a_complex_rotation(torch, dim, dims):
    x, positions = draw(4, 3, dim), np.array([0, 1, 77, 100_000])
    angle = angles(torch, positions, dims, 5e5, None)[:, None]
    pairs = torch.view_as_complex(torch.tensor(x[..., :dims]).reshape(4, 3, -1, 2))
    rotated = torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)).flatten(2)
    want = np.concatenate([rotated.numpy(), x[..., dims:]], -1)
    assert_same(rope.cpu(x, positions, base=5e5, dims=dims, pairing="interleaved"), want, ROPE_TOLERANCE)


ATTENTION_SHAPES = [  # queries, keys, heads, kv_heads, dim
    (1, 1, 1, 1, 16),
    (1, 300, 8, 1, 64),
    (17, 17, 3, 3, 80),
    (129, 129, 6, 2, 64),
    (5, 140, 4, 2, 256),
]


def mask_of(torch, queries, keys, causal, window):
    distance = torch.arange(keys - queries, keys)[:, None] - torch.arange(keys)
    seen = torch.ones(queries, keys, dtype=torch.bool)
    if causal:
        seen &= distance >= 0
    if window is not None:
        seen &= distance < window
    return seen


@pytest.mark.parametrize("softmax", ["online", "two-pass"])
@pytest.mark.parametrize("shape", ATTENTION_SHAPES, ids=str)
@pytest.mark.parametrize(("causal", "window"), [(True, None), (True, 9), (False, None)])
def test_attention_is_scaled_dot_product_attention(torch, shape, causal, window, softmax):
    queries, keys, heads, kv_heads, dim = shape
    q, k, v = draw(queries, heads, dim, seed=1), *(draw(keys, kv_heads, dim, seed=s) for s in (2, 3))
    want = torch.nn.functional.scaled_dot_product_attention(
        *(torch.tensor(x).transpose(0, 1)[None] for x in (q, k, v)),
        attn_mask=mask_of(torch, queries, keys, causal, window),
        scale=0.2,
        enable_gqa=True,
    )[0].transpose(0, 1)
    got = attention.cpu(q, k, v, scale=0.2, causal=causal, window=window, softmax=softmax, tile=48)
    assert_same(got["out"], want)


@pytest.mark.parametrize("softmax", ["online", "two-pass"])
@pytest.mark.parametrize("shape", ATTENTION_SHAPES, ids=str)
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("window", [None, 60])
def test_attention_intermediates(torch, shape, softcap, window, softmax):
    """scores, probs, m and l from the formulas; the running state as that of the keys up to each tile."""
    queries, keys, heads, kv_heads, dim = shape
    tile = 48
    q, k, v = draw(queries, heads, dim, seed=1), *(draw(keys, kv_heads, dim, seed=s) for s in (2, 3))
    got = attention.cpu(
        *(q, k, v),
        scale=0.3,
        window=window,
        softcap=softcap,
        softmax=softmax,
        tile=tile,
        want=frozenset(attention.EXTRAS),
    )
    k_repeated = torch.tensor(k).repeat_interleave(heads // kv_heads, dim=1)
    v_repeated = torch.tensor(v).repeat_interleave(heads // kv_heads, dim=1)
    scores = 0.3 * torch.einsum("qhd,khd->hqk", torch.tensor(q), k_repeated)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~mask_of(torch, queries, keys, True, window), -torch.inf)
    probs = torch.softmax(scores, -1)
    assert_same(got["scores"], scores)
    assert_same(got["probs"], probs)
    assert_same(got["out"], torch.einsum("hqk,khd->qhd", probs, v_repeated))
    assert_same(got["m"], scores.amax(-1))
    assert_same(got["m"] + np.log(got["l"]), torch.logsumexp(scores, -1))
    for index, end in enumerate(range(tile, keys + tile, tile)):
        head = scores[..., :end]
        assert_same(got["m_tiles"][index], head.amax(-1))
        with np.errstate(divide="ignore"):  # where no key of a query's window is reached yet
            assert_same(got["m_tiles"][index] + np.log(got["l_tiles"][index]), torch.logsumexp(head, -1))


@pytest.mark.parametrize("softmax", ["online", "two-pass"])
def test_attention_sinks(torch, softmax):
    """As transformers' GptOssAttention: a column of scores more, whose probability is dropped."""
    q, k, v, sinks = draw(7, 4, 8, seed=1), draw(7, 2, 8, seed=2), draw(7, 2, 8, seed=3), 2 * draw(4, seed=4)
    want = frozenset(attention.EXTRAS)
    got = attention.cpu(q, k, v, sinks, scale=0.5, tile=3, softmax=softmax, want=want)
    column = torch.tensor(sinks)[:, None, None].expand(4, 7, 1)
    combined = torch.cat([torch.tensor(got["scores"]), column], dim=-1)
    probs = combined.softmax(-1)[..., :-1]
    assert_same(got["probs"], probs)
    values = torch.tensor(v).repeat_interleave(2, dim=1).transpose(0, 1)
    assert_same(got["out"], (probs @ values).transpose(0, 1))
    assert_same(got["m"] + np.log(got["l"]), combined.logsumexp(-1))
    for tile, keys in enumerate((3, 6, 7)):
        part = torch.cat([torch.tensor(got["scores"])[..., :keys], column], dim=-1)
        assert_same(got["m_tiles"][tile], part.amax(-1))
        assert_same(got["m_tiles"][tile] + np.log(got["l_tiles"][tile]), part.logsumexp(-1))


def test_clamped_glu(torch):
    """As transformers' GptOssExperts writes it."""
    gate, up = 8 * draw(4, 50, seed=1), 8 * draw(4, 50, seed=2)
    g, u = torch.tensor(gate).clamp(max=7.0), torch.tensor(up).clamp(-7.0, 7.0)
    assert_same(clamped_glu.cpu(gate, up, alpha=1.702, limit=7.0), (u + 1) * g * torch.sigmoid(1.702 * g))


@pytest.mark.parametrize("renormalised", [True, False])
def test_mixture_of_experts(torch, renormalised):
    """The whole of a block without its activation, one token and one expert at a time."""
    x, router, weight = draw(7, 8, seed=1), 2 * draw(7, 5, seed=2), draw(5, 6, 8, seed=3)
    bias = draw(5, 6, seed=4)
    ids = top_k.cpu(router, k=2)
    parts = expert_weights.cpu(router, ids, renormalised=renormalised, scale=1.5)
    got = expert_sum.cpu(expert_linear.cpu(x, ids, weight, bias), parts)
    top, chosen = torch.topk(torch.softmax(torch.tensor(router), -1), 2)
    assert np.array_equal(ids, chosen)
    top = 1.5 * (top / top.sum(-1, keepdim=True) if renormalised else top)
    for token in range(7):
        pairs = zip(chosen[token].tolist(), top[token].tolist())
        want = sum(part * (weight[expert] @ x[token] + bias[expert]) for expert, part in pairs)
        assert_same(got[token], want)
    per_slot = np.stack([x, x + 1], axis=1)
    separate = expert_linear.cpu(per_slot, ids, weight)
    assert_same(separate[:, 1], np.einsum("toi,ti->to", weight[ids[:, 1]], x + 1))


def test_gated_add(torch):
    x, y, h, gate = draw(3, 8, seed=1), draw(3, 8, seed=2), draw(3, 5, seed=3), draw(5, seed=4)
    x_, y_, h_, gate_ = map(torch.tensor, (x, y, h, gate))
    assert_same(gated_add.cpu(x, y, h, gate), x_ + torch.sigmoid(h_ @ gate_)[:, None] * y_)
