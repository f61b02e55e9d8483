"""The CUDA kernels compiled for the CPU through the small CUDA of `host_cuda`: a GPU for the tests."""

import ctypes
import fcntl
import hashlib
import subprocess
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from tensortrace.kernels import cuda as gpu

HOST_CUDA = Path(__file__).parent / "kernels" / "host_cuda"
KERNELS = [import_module(f"tensortrace.kernels.{path.stem}") for path in gpu.SOURCES.glob("*.py")]
EXPRESSIONS = {source: e for m in KERNELS for source, e in getattr(m, "EXPRESSIONS", {}).items()}
FAULTY = {"faulty.cu": ["reverse", "reverse_without_barrier", "diverge", "overrun_shared", "overrun"]}
GXX = (
    *("g++", "-std=c++17", "-O2", "-shared", "-fPIC", "-fvisibility=hidden", "-U_FORTIFY_SOURCE"),
    *("-Wall", "-Wno-unknown-pragmas", "-Wno-sign-compare", f"-I{HOST_CUDA}", f"-I{gpu.SOURCES}"),
)
GUARD = 1024  # bytes around every array that must stay as they are


def bits(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).view(np.uint8)


class HostDevice:
    """The kernels compiled for the CPU.  Arrays are NumPy arrays that hold NaN and lie between guards."""

    def __init__(self, cache_folder: Path) -> None:
        self.folder = cache_folder
        self.backward = False
        self.guards: list[np.ndarray] = []
        self.graph: list[Callable[[], None]] | None = None

    def empty(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        assert self.graph is None, "an allocation inside a captured graph"
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        buffer = np.full(size + 3 * GUARD, 0xFF, np.uint8)
        first = GUARD + -(buffer.ctypes.data + GUARD) % 256
        self.guards += [buffer[:first], buffer[first + size :]]
        return buffer[first : first + size].view(dtype).reshape(shape)

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        array = self.empty(shape, dtype)
        array[...] = 0
        return array

    def put(self, array: np.ndarray) -> np.ndarray:
        copy = self.empty(array.shape, array.dtype)
        copy[...] = array
        return copy

    def get(self, array: np.ndarray) -> np.ndarray:
        return array

    def matmul(self, x: np.ndarray, weight: np.ndarray, out: np.ndarray) -> None:
        out[...] = x.astype(np.float32) @ weight.astype(np.float32).T

    def kernel(self, source: str, expression: str) -> gpu.Kernel:
        launch = _host_library(self.folder, source).launch

        def run(grid: tuple[int, ...], block: tuple[int, ...], args: Any, shared_mem: int = 0) -> None:
            values = [np.uint64(0 if a is None else a.ctypes.data) if _is_pointer(a) else a for a in args]
            holders = [np.asarray(value) for value in values]
            sizes = (ctypes.c_size_t * len(args))(*(holder.nbytes for holder in holders))
            pointers = (ctypes.c_void_p * len(args))(*(holder.ctypes.data for holder in holders))
            dimensions = [(ctypes.c_uint * 3)(*(*n, 1, 1)[:3]) for n in (grid, block)]

            def replay(_keep: Any = (args, holders)) -> None:
                shared = ctypes.c_size_t(shared_mem)
                name = expression.encode()
                error = launch(name, *dimensions, shared, len(args), sizes, pointers, self.backward)
                assert error is None, f"{expression}: {error.decode()}"

            replay()
            if self.graph is not None:
                self.graph.append(replay)

        return run

    def capture(self, compute: Callable[[], Any]) -> Callable[[], None]:
        """The launches of `compute`, to be made again with what is then in their arrays."""
        self.graph = []
        compute()
        graph, self.graph = self.graph, None

        def replay() -> None:
            for launch in graph:
                launch()

        return replay

    def fill(self, array: np.ndarray, values: Any) -> None:
        array[...] = values

    def run(self, compute: Callable[[], Any]) -> Any:
        """The result of `compute`, which must not depend on the order of threads and blocks."""
        results = []
        for self.backward in (False, True):
            results.append(compute())
            assert all((guard == 0xFF).all() for guard in self.guards), "a write outside an array"
            self.guards.clear()
        return same(*results)


def _is_pointer(argument: Any) -> bool:
    return argument is None or (isinstance(argument, np.ndarray) and argument.dtype.names is None)


def same(first: Any, second: Any) -> Any:
    pairs = zip(first.values(), second.values()) if isinstance(first, dict) else zip(first, second)
    if isinstance(first, np.ndarray):
        pairs = [(first, second)]
    for one, other in pairs:
        assert np.array_equal(bits(one), bits(other)), "two runs differ"
    return first


@cache
def _host_library(folder: Path, source: str) -> ctypes.CDLL:
    """The kernels of a `.cu` file for the CPU, compiled once per content."""
    names = {**EXPRESSIONS, **FAULTY}[source]
    entries = "\n".join(f'  host::entry("{name}", {name}),' for name in names)
    program = f"""
#include "host_cuda.h"
#include "{source}"

extern "C" __attribute__((visibility("default"))) const char* launch(
    const char* name, const unsigned* grid, const unsigned* block, size_t shared_bytes, int count,
    const size_t* sizes, void** arguments, bool backward) {{
  static const std::vector<host::Entry> entries = {{
{entries}
  }};
  return host::launch(entries, name, grid, block, shared_bytes, count, sizes, arguments, backward);
}}
"""
    files = [*HOST_CUDA.iterdir(), *gpu.SOURCES.glob("*.cuh"), *gpu.SOURCES.glob(source)]
    content = " ".join(GXX).encode() + program.encode() + b"".join(f.read_bytes() for f in sorted(files))
    stem = folder / f"{source}-{hashlib.sha256(content).hexdigest()[:16]}"
    library = stem.with_name(stem.name + ".so")
    with open(stem.with_name(stem.name + ".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the workers of pytest-xdist share the folder
        if not library.exists():
            cpp = stem.with_name(stem.name + ".cpp")
            cpp.write_text(program)
            partial = library.with_suffix(".partial")
            done = subprocess.run([*GXX, "-o", partial, cpp], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            partial.rename(library)
    loaded = ctypes.CDLL(str(library))
    loaded.launch.restype = ctypes.c_char_p
    return loaded
