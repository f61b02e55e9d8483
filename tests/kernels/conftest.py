"""Where the kernel tests run: on the CPU through the small CUDA of `host_cuda`, or on a GPU through CuPy."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from host_gpu import EXPRESSIONS, HostDevice, same
from tensortrace.kernels import cuda as gpu


class GpuDevice:
    """The kernels on the current GPU; every array that they are to fill holds NaN."""

    def __init__(self) -> None:
        import cupy

        self.cupy = cupy
        self.kernel = gpu.kernel
        self.matmul = gpu.matmul
        self.zeros = cupy.zeros
        self.put = cupy.asarray
        self.get = cupy.asnumpy
        self.capturing = False

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        assert not self.capturing, "an allocation inside a captured graph"
        array = self.cupy.empty(shape, dtype)
        array.view(np.uint8).fill(0xFF)
        return array

    def run(self, compute: Callable[[], Any]) -> Any:
        """The result of `compute`, which must be the same to the bit when run again."""
        return same(*(_host(compute(), self.get) for _ in range(2)))

    def capture(self, compute: Callable[[], Any]) -> Callable[[], None]:
        """`compute` as a CUDA graph."""
        stream = self.cupy.cuda.Stream(non_blocking=True)
        self.cupy.cuda.Device().synchronize()
        with stream:
            compute()  # compiles the kernels
            self.capturing = True
            stream.begin_capture()
            compute()
            graph = stream.end_capture()
            self.capturing = False

        def replay() -> None:
            graph.launch(stream)
            stream.synchronize()

        return replay

    def fill(self, array: Any, values: Any) -> None:
        array[...] = self.cupy.asarray(values)
        self.cupy.cuda.Device().synchronize()


def _host(result: Any, get: Callable[[Any], np.ndarray]) -> Any:
    if isinstance(result, dict):
        return {name: get(array) for name, array in result.items()}
    return tuple(map(get, result)) if isinstance(result, tuple) else get(result)


@pytest.fixture(scope="session")
def expressions() -> dict[str, list[str]]:
    """Every kernel of every `.cu` file, as the compiler is asked for it."""
    return EXPRESSIONS


@pytest.fixture(
    params=[pytest.param("host", marks=pytest.mark.cxx), pytest.param("gpu", marks=pytest.mark.gpu)]
)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> HostDevice | GpuDevice:
    """The ops' `cuda` functions allocate and launch through this device while a test runs."""
    folder = request.config.cache.mkdir("host_cuda")
    return _installed(HostDevice(folder) if request.param == "host" else GpuDevice(), monkeypatch)


@pytest.fixture
def host_device(request: pytest.FixtureRequest) -> HostDevice:
    return HostDevice(request.config.cache.mkdir("host_cuda"))


@pytest.fixture
def gpu_device(monkeypatch: pytest.MonkeyPatch) -> GpuDevice:
    """For tests too large for the CPU, which are marked `gpu` themselves."""
    return _installed(GpuDevice(), monkeypatch)


def _installed(made: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    for name in ("empty", "zeros", "kernel", "matmul"):
        monkeypatch.setattr(gpu, name, getattr(made, name))
    return made
