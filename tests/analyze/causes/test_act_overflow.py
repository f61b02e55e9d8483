"""The thresholds that are tried where the activation itself was not recorded."""

from types import SimpleNamespace

import numpy as np
import pytest
from tensortrace.analyze.cause import causes


@pytest.mark.parametrize("shape", [(5, 12), (5, 2, 6)], ids=["dense", "experts"])
def test_a_threshold_between_any_two_tokens(shape: tuple[int, ...]) -> None:
    gate = np.arange(60.0).reshape(shape)
    case = SimpleNamespace(recorded=lambda: None, inputs=[gate])
    assert causes()["act_overflow"].fit(case) == [17.0, 29.0, 41.0, 53.0, 5.5]
