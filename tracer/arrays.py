"""Arrays of any library as NumPy arrays of a type that a trace can store."""

import sys
from typing import Any

import ml_dtypes
import numpy as np

from .errors import UserError
from .format import numpy_dtype


def to_numpy(array: Any, what: str) -> np.ndarray:
    """`array` in host memory; a view where it lies there already.  `what` names it in errors.

    Takes NumPy, PyTorch, CuPy and JAX arrays, whatever has DLPack or `__array__`, numbers and lists of them.
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(array, torch.Tensor):
        values = _from_torch(array, torch, what)
    elif not isinstance(array, np.ndarray) and hasattr(array, "__cuda_array_interface__"):
        values = array.get() if hasattr(array, "get") else _from_dlpack(array, what)
    elif hasattr(array, "__dlpack__") and not hasattr(array, "__array__"):
        values = _from_dlpack(array, what)
    else:
        values = _as_array(array, what)
    return storable(values, what)


def storable(values: np.ndarray, what: str) -> np.ndarray:
    """`values` in a type that a trace has; UserError where there is none."""
    if values.dtype == np.bool_:
        return values.view(np.uint8)
    try:
        numpy_dtype(values.dtype.name)
    except ValueError:
        raise UserError(
            f"{what} has the type {values.dtype}: record real numbers of at most 64 bits"
        ) from None
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def _from_torch(tensor: Any, torch: Any, what: str) -> np.ndarray:
    """NumPy has no bfloat16 and float8 of its own: their bits travel as integers."""
    try:
        host = tensor.detach().resolve_conj().resolve_neg().cpu()
        for name, carrier in (("bfloat16", "int16"), ("float8_e4m3fn", "uint8"), ("float8_e5m2", "uint8")):
            if host.dtype == getattr(torch, name, None):
                return host.view(getattr(torch, carrier)).numpy().view(getattr(ml_dtypes, name))
        return host.numpy()
    except (TypeError, RuntimeError) as error:  # sparse, quantised and meta tensors have no array
        raise UserError(f"{what} is a torch tensor without plain values: {error}") from error


def _from_dlpack(array: Any, what: str) -> np.ndarray:
    try:
        return np.from_dlpack(array, device="cpu")
    except (RuntimeError, BufferError, TypeError, ValueError) as error:
        raise UserError(f"{what} cannot be copied to the host through DLPack: {error}") from error


def _as_array(array: Any, what: str) -> np.ndarray:
    try:
        return np.asarray(array)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{what} is no array: {error}") from error
