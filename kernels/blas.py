"""The threads of NumPy's matrix products, where threads of our own run several of them at once.

OpenBLAS would start as many threads for each of them: on two busy cores that was measured to cost six times
the work, most of it waiting.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np


def threads() -> int:
    """Threads of a product now; 1 where NumPy came with another library than OpenBLAS, which isn't asked."""
    library = _openblas()
    return 1 if library is None else library.scipy_openblas_get_num_threads64_()


@contextmanager
def one_thread_each() -> Iterator[None]:
    """While inside, products use one thread; NumPy with another library than OpenBLAS is left as it is."""
    library = _openblas()
    if library is None:
        yield
        return
    before = library.scipy_openblas_get_num_threads64_()
    library.scipy_openblas_set_num_threads64_(1)
    try:
        yield
    finally:
        library.scipy_openblas_set_num_threads64_(before)


@cache
def _openblas() -> ctypes.CDLL | None:
    """The library inside NumPy's wheel."""
    for path in (Path(np.__file__).parents[1] / "numpy.libs").glob("libscipy_openblas64_*"):
        library = ctypes.CDLL(str(path))
        if hasattr(library, "scipy_openblas_set_num_threads64_"):
            return library
    return None
