"""What tests of the tracer share: a GPU, real or its kernels on the CPU, writing in Python."""

import pytest
from fake_device import FakeDevice
from host_gpu import HostDevice
from tensortrace.kernels import cuda as gpu
from tensortrace.tracer import rows
from tensortrace.tracer.device import CudaDevice


@pytest.fixture(
    params=[pytest.param("host", marks=pytest.mark.cxx), pytest.param("gpu", marks=pytest.mark.gpu)]
)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FakeDevice | CudaDevice:
    if request.param == "gpu":
        return CudaDevice()
    host = HostDevice(request.config.cache.mkdir("host_cuda"))
    for name in ("empty", "zeros", "kernel", "matmul"):
        monkeypatch.setattr(gpu, name, getattr(host, name))
    return FakeDevice(host)


@pytest.fixture
def written_by_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are written by os.pwritev, which a test can put another function in place of."""
    monkeypatch.setattr(rows, "LIBRARY", None)
