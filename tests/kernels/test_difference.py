"""The compiled figures of rows by group; what each is worth is checked in tests/analyze/test_metrics.py."""

import numpy as np
import pytest
from tensortrace.kernels import native
from tensortrace.kernels.difference import ADDED, FIGURES, Pair, figures

pytestmark = pytest.mark.cxx


def pair(rows: int = 5, width: int = 12) -> Pair:
    a, b = np.random.default_rng(0).standard_normal((2, rows, width)).astype(np.float32)
    return Pair(a, b, None, head_dim=4, floor=-1e30)


def test_groups_are_their_rows_together():
    each = pair()
    starts = np.array([0, 2, 3])
    rows, together = (found for found, _ in figures([each, each._replace(starts=starts)]))
    added = len(ADDED)
    assert together.shape == (len(FIGURES), 3)
    np.testing.assert_allclose(together[:added], np.add.reduceat(rows[:added], starts, 1))
    np.testing.assert_array_equal(together[added:], np.maximum.reduceat(rows[added:], starts, 1))


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_rows_that_float32_does_not_do_for_are_left_out(bad):
    each = pair()
    each.a[1, 3] = bad
    found, lost = figures([each._replace(starts=np.zeros(1, int))])[0]
    assert lost.tolist() == [False, True, False, False, False]
    assert found[FIGURES.index("rows")] == 4
    assert np.isfinite(found).all()


@pytest.mark.parametrize(
    "change",
    [
        {"b": np.zeros((4, 12), np.float32)},
        {"starts": np.zeros(0, int)},
        {"valid": np.zeros(4, int)},
        {"head_dim": 5},
        {"head_dim": -1},
    ],
)
def test_arrays_that_do_not_fit_are_refused(change):
    with pytest.raises(ValueError, match="do not fit together"):
        figures([pair(), pair()._replace(**change)])


@pytest.mark.parametrize("item", [None, (), (1, 2, 3)])
def test_what_is_no_pair_is_refused(item):
    with pytest.raises((TypeError, SystemError)):
        native.LIBRARY.differ([item])
