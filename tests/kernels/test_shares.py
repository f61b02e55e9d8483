"""Work shared out to threads: every slice once, errors, NumPy's settings, and what else runs."""

import os
import threading
import time
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensortrace.kernels import blas, glu, linear, rms_norm, rope, shares


@pytest.fixture(params=[1, 2, 4])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """As on a machine with so many cores."""
    shares._helpers.cache_clear()
    monkeypatch.setattr(blas, "threads", lambda: request.param)
    return int(request.param)


@given(count=st.integers(0, 300), size=st.integers(1, 100))
def test_the_slices_cover_all_once(count: int, size: int) -> None:
    taken = np.zeros(count, int)

    def take(span: slice) -> None:
        assert span.stop - span.start <= max(size, count if count <= size else size)
        taken[span] += 1

    shares.share_out(take, count, size)
    assert (taken == 1).all()


def test_the_slices_are_the_same_on_any_number_of_cores(threads: int) -> None:
    spans: list[tuple[int, int]] = []
    shares.share_out(lambda span: spans.append((span.start, span.stop)), 250, 64)
    assert sorted(spans) == [(0, 64), (64, 128), (128, 192), (192, 250)]


def test_several_threads_take_part(threads: int) -> None:
    names: set[str] = set()

    def take(span: slice) -> None:
        names.add(threading.current_thread().name)
        time.sleep(0.01)

    shares.share_out(take, 40, 1)
    assert len(names) == threads


def test_an_error_in_a_share_is_raised_once_all_are_out(threads: int) -> None:
    begun: list[int] = []
    ended: list[int] = []

    def take(span: slice) -> None:
        begun.append(span.start)
        try:
            time.sleep(0.001)
            if span.start == 5:
                raise ValueError("share 5")
        finally:
            ended.append(span.start)

    with pytest.raises(ValueError, match="share 5"):
        shares.share_out(take, 20, 1)
    assert sorted(begun) == sorted(ended)


def test_shares_inside_shares_do_not_wait_for_each_other(threads: int) -> None:
    taken = np.zeros((8, 8), int)

    def outer(rows: slice) -> None:
        def inner(columns: slice) -> None:
            taken[rows, columns] += 1

        shares.share_out(inner, 8, 1)

    shares.share_out(outer, 8, 1)
    assert (taken == 1).all()


def test_numpy_settings_hold_in_every_share(threads: int) -> None:
    barrier = threading.Barrier(threads, timeout=30)

    def take(span: slice) -> None:
        barrier.wait()
        np.exp(np.float32(1000.0) * np.ones(3, np.float32))

    with warnings.catch_warnings(), np.errstate(over="ignore"):
        warnings.simplefilter("error")
        shares.share_out(take, threads, 1)


def test_blas_has_its_threads_again(threads: int) -> None:
    before = blas._openblas().scipy_openblas_get_num_threads64_()
    shares.share_out(lambda span: None, 10, 1)
    assert blas._openblas().scipy_openblas_get_num_threads64_() == before


def test_a_child_of_fork_shares_too(threads: int) -> None:
    shares.share_out(lambda span: time.sleep(0.001), 20, 1)
    child = os.fork()
    if child == 0:
        taken: list[slice] = []
        shares.share_out(taken.append, 20, 1)
        os._exit(0 if len(taken) == 20 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_results_do_not_depend_on_the_cores(threads: int) -> None:
    """To the bit, on what is long enough to be shared out; one core's are those of a plain loop."""
    random = np.random.default_rng(0)
    x = random.standard_normal((300, 576), np.float32)
    weight = random.standard_normal((700, 576), np.float32)
    with blas.one_thread_each():
        parts = [x @ weight[i : i + linear.COLUMNS].T for i in range(0, 700, linear.COLUMNS)]
    assert np.array_equal(linear.cpu(x, weight), np.concatenate(parts, 1))
    gain, heads, positions = np.ones(576, np.float32), x.reshape(300, 9, 64), np.arange(300)
    turn: dict[str, Any] = {"base": 1e4, "dims": 32, "pairing": "interleaved"}
    for whole, part in (
        (rms_norm.cpu(x, gain, eps=1e-5), lambda rows: rms_norm.cpu(x[rows], gain, eps=1e-5)),
        (glu.cpu(x, x), lambda rows: glu.cpu(x[rows], x[rows])),
        (rope.cpu(heads, positions, **turn), lambda rows: rope.cpu(heads[rows], positions[rows], **turn)),
    ):
        tens = [slice(first, first + 10) for first in range(0, 300, 10)]
        assert np.array_equal(whole, np.concatenate([part(rows) for rows in tens]))
