"""The compiled kernels (`*.c`), where the package was built with a C compiler; None where it was not.

Whatever they compute, NumPy code beside them computes, too: they only save time.
"""

from importlib import import_module
from typing import Any


def compiled(name: str, package: str | None) -> Any:
    """The compiled module of that name in `package`; None where it was not built."""
    try:
        return import_module(f".{name}", package)
    except ImportError:
        return None


LIBRARY: Any = compiled("_native", __package__)
