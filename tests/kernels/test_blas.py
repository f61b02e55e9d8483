"""The threads of NumPy's matrix products."""

import numpy as np
import pytest
from tensortrace.kernels import blas


def threads() -> int:
    library = blas._openblas()
    assert library is not None, "NumPy's wheels for Linux bring OpenBLAS"
    return library.scipy_openblas_get_num_threads64_()


def test_one_thread_inside_and_as_before_afterwards() -> None:
    before = threads()
    with blas.one_thread_each():
        assert threads() == 1
        assert (np.eye(300) @ np.ones((300, 300)) == 1).all()
    assert threads() == before


def test_another_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    before = threads()
    with monkeypatch.context() as patch:
        patch.setattr(blas, "_openblas", lambda: None)
        with blas.one_thread_each():
            pass
    assert threads() == before
