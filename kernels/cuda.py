"""Compile and launch the `.cu` files of this folder through CuPy (NVRTC); cupy is imported on first use only.

Every op's `cuda` function reaches the GPU through the functions of this module alone, so that the tests can
run the same launches on a CPU.
"""

import os
from functools import cache
from pathlib import Path
from typing import Any, Protocol
from zlib import crc32

import numpy as np

Array = Any  # cupy.ndarray; kernels take C-contiguous ones

SOURCES = Path(__file__).parent
OPTIONS = ("-std=c++17", f"-I{SOURCES}")  # no fast-math: expf, tanhf, division and root stay accurate
STORAGE = {"float32": "float", "float16": "f16", "bfloat16": "bf16"}  # dtype -> type in common.cuh
SPAN = 64  # terms of a product that are added up in a row
STATIC_SHARED = 48 * 1024  # bytes of shared memory a block gets without asking


class Kernel(Protocol):
    """What a compiled kernel is to us (`cupy.RawKernel`)."""

    max_dynamic_shared_size_bytes: int

    def __call__(
        self, grid: tuple[int, ...], block: tuple[int, ...], args: tuple[Any, ...], *, shared_mem: int
    ) -> None: ...


def storage(array: Array) -> str:
    """The name in `common.cuh` of the array's element type."""
    try:
        return STORAGE[array.dtype.name]
    except KeyError:
        raise TypeError(f"no kernels for {array.dtype}: one of {', '.join(STORAGE)}") from None


@cache
def kernel(source: str, expression: str) -> Kernel:
    """The kernel `expression`, for example `add<float>`, of the file `source`, compiled for this GPU."""
    import cupy

    # CuPy's cache of binaries does not see what a file includes, so the source names its headers' checksum
    headers = b"".join(path.read_bytes() for path in sorted(SOURCES.glob("*.cuh")))
    code = f"// headers {crc32(headers):08x}\n" + (SOURCES / source).read_text()
    module = cupy.RawModule(code=code, options=OPTIONS, name_expressions=(expression,))
    return module.get_function(expression)


def launch(
    source: str,
    expression: str,
    grid: tuple[int, ...],
    block: tuple[int, ...],
    *args: Any,
    shared: int = 0,
) -> None:
    """Launch on the current stream: `args` are arrays, None (a null pointer) or NumPy scalars.

    `shared` is the dynamic shared memory of a block in bytes.
    """
    function = kernel(source, expression)
    if shared > STATIC_SHARED:
        function.max_dynamic_shared_size_bytes = shared
    function(grid, block, args, shared_mem=shared)


def empty(shape: tuple[int, ...], dtype: Any) -> Array:
    import cupy

    return cupy.empty(shape, dtype)


def zeros(shape: tuple[int, ...], dtype: Any) -> Array:
    import cupy

    return cupy.zeros(shape, dtype)


def matmul(x: Array, weight: Array, out: Array) -> None:
    """out [m, n] = x [m, k] @ weight [n, k].T through cuBLAS, accumulated in float32, never rounded to TF32.

    In float32 the terms are added up SPAN at a time: rounding grows with the root of the terms in a row
    (Higham, The accuracy of floating point summation, 1993), and cuBLAS adds all k in a row.
    """
    import cupy
    from cupy.cuda import cublas

    os.environ["CUPY_TF32"] = "0"  # CuPy reads it when it first multiplies
    if x.dtype != np.float32:
        cupy.matmul(x, weight.T, out=out)
        return
    (m, k), n, handle = x.shape, len(weight), cupy.cuda.device.get_cublas_handle()
    one, keep = np.float32(1).reshape(1), np.float32(0).reshape(1)
    for first in range(0, k, SPAN):  # cuBLAS counts columns first, so it sees all three transposed
        terms, skipped = min(SPAN, k - first), first * x.itemsize
        cublas.sgemm(
            *(handle, cublas.CUBLAS_OP_T, cublas.CUBLAS_OP_N, n, m, terms, one.ctypes.data),
            *(weight.data.ptr + skipped, k, x.data.ptr + skipped, k, keep.ctypes.data, out.data.ptr, n),
        )
        keep = one


def cdiv(work: int, per_block: int) -> int:
    """How many blocks cover `work` items."""
    return -(-work // per_block)
