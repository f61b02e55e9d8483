import numpy as np
from tensortrace.analyze.tally import Place, Tally

PLACE = Place("prefill", "q", 0)


def test_weighted_means():
    tally = Tally()
    tally.add(PLACE, 1.0, 1, [0])
    tally.add(PLACE, 4.0, 2, [1, 2])
    ((place, entry),) = tally.items()
    assert (place, entry.mean, entry.weight, entry.steps) == (PLACE, 3.0, 3, {0, 1, 2})
    assert not list(tally.items(least=4))


def test_what_cannot_be_averaged_is_left_out():
    tally = Tally()
    tally.add(PLACE, np.array([1.0, np.nan]), 1, [0])
    assert not list(tally.items())
    tally.add(PLACE, np.ones(2), 1, [1])
    tally.add(PLACE, np.ones(3), 1, [2])
    tally.add(PLACE, np.ones(2), 0, [3])
    ((_, entry),) = tally.items()
    assert entry.steps == {1}
