"""What is said where CuPy or a GPU is missing."""

import sys
from types import SimpleNamespace

import pytest
from tensortrace.tracer import device
from tensortrace.tracer.errors import MissingExtra, UserError


class Failed(Exception):
    pass


def fake_cupy(count: int, error: str = "") -> SimpleNamespace:
    def get_count() -> int:
        if error:
            raise Failed(error)
        return count

    runtime = SimpleNamespace(getDeviceCount=get_count, CUDARuntimeError=Failed)
    return SimpleNamespace(cuda=SimpleNamespace(runtime=runtime), __spec__=SimpleNamespace(name="cupy"))


def test_without_cupy_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(MissingExtra, match=r"pip install 'tensortrace\[cuda13\]'"):
        device.CudaDevice()


@pytest.mark.parametrize(
    ("cupy", "says"),
    [
        (fake_cupy(0), "no GPU is visible"),
        (fake_cupy(1, "cudaErrorInsufficientDriver"), r"no usable GPU \(cudaErrorInsufficientDriver\)"),
    ],
)
def test_without_a_gpu_it_is_one_clear_line(
    monkeypatch: pytest.MonkeyPatch, cupy: SimpleNamespace, says: str
) -> None:
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    with pytest.raises(UserError, match=says) as raised:
        device.CudaDevice()
    assert "\n" not in str(raised.value)
    assert not device.usable()


def test_usable_with_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy(1))
    assert device.usable()
