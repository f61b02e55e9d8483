import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensortrace.tracer.cli.values import grid, kept_axes, parse_slice, statistics
from tensortrace.tracer.errors import UserError

AXES, SHAPE = ("token", "head", "dim"), (5, 3, 8)


@given(st.text("0123456789:-, a", max_size=12))
def test_a_slice_is_understood_or_refused(text):
    try:
        index = parse_slice(text, AXES, SHAPE)
    except UserError:
        return
    assert np.zeros(SHAPE)[index].ndim == len(kept_axes(AXES, index))


@pytest.mark.parametrize("shape", [(), (1,), (7,), (20,), (3, 4), (40, 40), (2, 3, 4), (2, 2, 9, 9)])
def test_grids_of_any_shape(shape):
    array = np.arange(int(np.prod(shape)), dtype=np.float32).reshape(shape)
    shown, note = grid(array, [f"axis{at}" for at in range(len(shape))])
    assert shown.row_count == (1 if len(shape) < 2 else min(shape[-2], 7))
    assert bool(note) == (len(shape) > 2)


def test_statistics_of_nothing_finite():
    figures = statistics(np.array([np.nan, np.inf]))
    assert (figures["nan"], figures["inf"], figures["count"]) == (1, 1, 2)
    assert np.isnan(figures["mean"])
