"""The device of the CUDA engine on the kernels compiled for the CPU."""

from collections.abc import Callable
from typing import Any

import numpy as np
from host_gpu import HostDevice


class HostFetch:
    """An array that was copied at once, and counts as on its way until it is released."""

    def __init__(self, array: np.ndarray, device: "FakeDevice"):
        self.array, self.device, self.nbytes = array.copy(), device, array.nbytes
        device.on_their_way += 1

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.array

    def release(self) -> None:
        if self.array is not None:
            self.array = None
            self.device.on_their_way -= 1


class FakeDevice:
    """`device.CudaDevice` on the kernels compiled for the CPU."""

    name = "host"

    def __init__(self, host: HostDevice):
        self.host, self.on_their_way, self.launches = host, 0, 0
        self.empty, self.upload = host.empty, host.put

    def full(self, size: int, byte: int) -> np.ndarray:
        array = self.host.empty((size,), np.uint8)
        array[...] = byte
        return array

    def write(self, target: np.ndarray, values: np.ndarray) -> None:
        target[...] = values

    def copy(self, target: np.ndarray, source: np.ndarray) -> None:
        target[...] = source

    def fetch(self, array: np.ndarray) -> HostFetch:
        return HostFetch(np.ascontiguousarray(array), self)

    def trim(self) -> None:
        """Nothing is kept here."""

    def after(self, fetch: HostFetch) -> None:
        """Copies are done at once here."""

    def capture(self, body: Callable[[], None]) -> Callable[[], None]:
        replay = self.host.capture(body)

        def launch() -> None:
            self.launches += 1
            replay()

        return launch

    def run(self, body: Callable[[], Any]) -> Any:
        return body()
