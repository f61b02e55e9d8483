"""Choosing tokens."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tensortrace.tracer.errors import UserError
from tensortrace.tracer.sampling import Sampler, Sampling

logits = hnp.arrays(np.float32, st.integers(1, 40), elements=st.floats(-80, 80, width=32))


def drawn(values: list[float], count: int = 4000, **options) -> np.ndarray:
    sampler, array = Sampler(Sampling(**options)), np.array(values, np.float32)
    return np.bincount([sampler(array) for _ in range(count)], minlength=len(values)) / count


@given(logits)
def test_greedy_takes_the_first_of_the_largest(values: np.ndarray) -> None:
    assert Sampler(Sampling())(values) == int(np.argmax(values))


@given(logits, st.floats(0.01, 5), st.integers(0, 50), st.floats(0.01, 1), st.integers(0, 99))
def test_draws_are_reproducible_and_allowed(values, temperature, top_k, top_p, seed) -> None:
    sampling = Sampling(temperature, top_k, top_p, seed)
    first, second = Sampler(sampling), Sampler(sampling)
    for _ in range(5):
        token = first(values)
        assert token == second(values)
        assert 0 <= token < len(values)
        if top_k:
            assert (values > values[token]).sum() < top_k


def test_frequencies_follow_the_softmax() -> None:
    values = [1.0, 2.0, 0.0, 3.0]
    for temperature in (0.5, 1.0, 3.0):
        expected = np.exp(np.array(values) / temperature)
        assert np.abs(drawn(values, temperature=temperature) - expected / expected.sum()).max() < 0.03


def test_top_k_and_top_p_cut_the_tail() -> None:
    values = np.log([0.5, 0.3, 0.15, 0.05]).tolist()
    assert (drawn(values, temperature=1.0, top_k=2)[2:] == 0).all()
    # the smallest set that reaches 0.7 is the first two
    assert (drawn(values, temperature=1.0, top_p=0.7)[2:] == 0).all()
    assert np.abs(drawn(values, temperature=1.0, top_p=0.7)[:2] - [0.625, 0.375]).max() < 0.03


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.7)])
def test_broken_logits_do_not_break_the_run(sampling: Sampling) -> None:
    sampler = Sampler(sampling)
    assert sampler(np.full(4, np.nan, np.float32)) == 0
    assert sampler(np.array([np.nan, 1, 5, 2], np.float32)) == 2
    assert sampler(np.array([-np.inf, -np.inf, 1], np.float32)) == 2
    for broken in ([np.inf, 1, 2], [1, np.inf, 2], [-np.inf] * 3):
        assert 0 <= sampler(np.array(broken, np.float32)) < 3


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1}, {"temperature": float("nan")}, {"top_k": -1}, {"top_p": 0}, {"top_p": 1.1}]
)
def test_impossible_settings(wrong: dict) -> None:
    with pytest.raises(UserError, match="sampling needs"):
        Sampling(**wrong)
