"""Rotary embedding against complex numbers, and what rotations keep."""

import cmath

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensortrace.kernels import rope

pairings = st.sampled_from(["interleaved", "half-split"])
shapes = st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 8), st.integers(0, 4))
bases = st.sampled_from([10.0, 10_000.0, 1e6])


def draw(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def pairs_of(dims: int, pairing: str) -> list[tuple[int, int]]:
    half = dims // 2
    return [(2 * i, 2 * i + 1) if pairing == "interleaved" else (i, i + half) for i in range(half)]


@settings(deadline=None)
@given(shapes, bases, pairings, st.lists(st.integers(0, 5000), min_size=4, max_size=4), st.booleans())
def test_every_pair_is_turned_as_a_complex_number(shape, base, pairing, positions, scaled) -> None:
    tokens, heads, half, rest = shape
    dims = 2 * half
    x, places = draw(0, tokens, heads, dims + rest), np.array(positions[:tokens])
    factors = np.linspace(1, 8, half) if scaled else None
    found = rope.cpu(x, places, factors, base=base, dims=dims, pairing=pairing)
    for token in range(tokens):
        for head in range(heads):
            expected = x[token, head].copy()
            for i, (a, b) in enumerate(pairs_of(dims, pairing)):
                angle = positions[token] * base ** (-2 * i / dims) / (factors[i] if scaled else 1)
                turned = complex(x[token, head, a], x[token, head, b]) * cmath.exp(1j * angle)
                expected[a], expected[b] = turned.real, turned.imag
            np.testing.assert_allclose(found[token, head], expected, atol=1e-10)


@settings(deadline=None)
@given(shapes, pairings, st.sampled_from([np.float32, np.float64]), st.integers(0, 100_000))
def test_norms_of_pairs_stay(shape, pairing, dtype, position) -> None:
    tokens, heads, half, rest = shape
    x = draw(1, tokens, heads, 2 * half + rest).astype(dtype)
    found = rope.cpu(x, np.full(tokens, position), base=1e4, dims=2 * half, pairing=pairing)
    assert found.dtype == dtype
    first, second = rope.pair_slices(2 * half, pairing)
    before, after = (np.hypot(a[..., first], a[..., second]) for a in (x, found))
    np.testing.assert_allclose(after, before, rtol=1e-6 if dtype == np.float32 else 1e-13)
    assert np.array_equal(found[..., 2 * half :], x[..., 2 * half :])


@settings(deadline=None)
@given(pairings, st.integers(0, 300), st.integers(0, 300), st.integers(0, 300))
def test_products_depend_on_the_distance_only(pairing, query, key, shift) -> None:
    q, k = draw(2, 1, 1, 16), draw(3, 1, 1, 16)

    def score(at: int, by: int) -> float:
        turned = (
            rope.cpu(x, np.array([p]), base=1e4, dims=16, pairing=pairing).ravel()
            for x, p in ((q, at), (k, by))
        )
        return float(np.dot(*turned))

    assert score(query, key) == pytest.approx(score(query + shift, key + shift), abs=1e-9)


def test_position_zero_changes_nothing() -> None:
    x = draw(4, 3, 2, 8)
    assert np.array_equal(rope.cpu(x, np.zeros(3, int), base=1e4, dims=8, pairing="interleaved"), x)


def test_pairings_are_permutations_of_one_another() -> None:
    x, positions = draw(5, 4, 2, 8), np.arange(4)
    order = [0, 2, 4, 6, 1, 3, 5, 7]  # an interleaved vector as half-split
    interleaved = rope.cpu(x, positions, base=1e4, dims=8, pairing="interleaved")
    half_split = rope.cpu(x[..., order], positions, base=1e4, dims=8, pairing="half-split")
    assert np.array_equal(interleaved[..., order], half_split)


def test_an_unknown_pairing_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown RoPE pairing 'zigzag'"):
        rope.cpu(draw(6, 1, 1, 4), np.zeros(1, int), base=1e4, dims=4, pairing="zigzag")


def test_far_positions_stay_exact_in_float32() -> None:
    """Angles are not rounded to float32: at position 100 000 that alone would be an error of 4e-3."""
    x, positions = draw(7, 2, 1, 8), np.array([99_999, 100_000])
    exact = rope.cpu(x, positions, base=1e4, dims=8, pairing="interleaved")
    single = rope.cpu(x.astype(np.float32), positions, base=1e4, dims=8, pairing="interleaved")
    np.testing.assert_allclose(single, exact, atol=1e-6)
