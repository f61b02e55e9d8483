"""The compiled kernels (`*.c`), where the package was built with a C compiler; None where it was not.

Whatever they compute, NumPy code beside them computes, too: they only save time.
"""

from importlib import import_module
from typing import Any

import numpy as np


def compiled(name: str, package: str | None) -> Any:
    """The compiled module of that name in `package`; None where it was not built."""
    try:
        return import_module(f".{name}", package)
    except ImportError:
        return None


LIBRARY: Any = compiled("_native", __package__)


def takes(*arrays: np.ndarray | None) -> bool:
    """Whether there are compiled kernels, and the arrays (None: not given) are what they work on."""
    given = [array for array in arrays if array is not None]
    return LIBRARY is not None and all(a.dtype == np.float32 and a.flags.c_contiguous for a in given)
