"""The compiled kernels (`*.c`), where the package was built with a C compiler; None where it was not.

Whatever they compute, NumPy code beside them computes, too: they only save time.
"""

from importlib import import_module
from typing import Any


def _load() -> Any:
    try:
        return import_module("._native", __package__)
    except ImportError:
        return None


LIBRARY: Any = _load()
