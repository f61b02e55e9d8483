"""What the CUDA engine needs of CuPy besides launching kernels: uploads, a copy stream, captured graphs."""

import threading
from collections import deque
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np

from .errors import MissingExtra, UserError

Array = Any  # cupy.ndarray
BUFFER_BYTES = 1 << 30  # pinned memory on its way from the GPU at once
LEAVING_BYTES = 64 << 20  # device memory kept for copies that have not arrived: a millisecond's worth


class Fetch:
    """A device array on its way to pinned host memory (a `packed.Pending`)."""

    def __init__(self, host: np.ndarray, done: Any, give_back: Callable[[int], None]):
        self.nbytes = host.nbytes
        self.done, self._give_back = done, give_back
        self._host: np.ndarray | None = host

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        self.done.synchronize()
        assert self._host is not None, "read after release"
        return self._host if dtype is None else self._host.astype(dtype)

    def release(self) -> None:
        """The array was used: its pinned memory may be taken again."""
        if self._host is not None:
            self._host = None
            self._give_back(self.nbytes)


class CudaDevice:
    """The current GPU.  Kernels run on `compute`; fetches overlap them on a second stream.

    At most `buffer_bytes` of pinned memory are on their way at once: `fetch` waits for room, so a slow disk
    slows the run down instead of filling the memory.
    """

    def __init__(self, buffer_bytes: int = BUFFER_BYTES):
        self._cupy = _import_cupy()
        properties = self._cupy.cuda.runtime.getDeviceProperties(self._cupy.cuda.Device().id)
        self.name = properties["name"].decode()
        self.compute = self._cupy.cuda.Stream(non_blocking=True)
        self._copies = self._cupy.cuda.Stream(non_blocking=True)
        self._free = self._buffer_bytes = buffer_bytes
        self._room = threading.Condition()
        # events, and what is copied until then: CuPy would lend memory again that a copy still writes to
        self._leaving: deque[tuple[Any, Array, np.ndarray]] = deque()
        self._leaving_bytes = 0

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        return self._cupy.empty(shape, dtype)

    def full(self, size: int, byte: int) -> Array:
        """uint8 [size] with every byte set."""
        return self._cupy.full(size, byte, np.uint8)

    def upload(self, array: np.ndarray) -> Array:
        return self._cupy.asarray(array)

    def write(self, target: Array, values: np.ndarray) -> None:
        """Overwrite a small device array, in order with the kernels."""
        target.set(values, stream=self.compute)

    def copy(self, target: Array, source: Array) -> None:
        self._cupy.copyto(target, source)

    def fetch(self, array: Array) -> Fetch:
        """Begin to copy `array` to the host as soon as the kernels so far are done."""
        array = self._cupy.ascontiguousarray(array)
        with self._room:
            self._room.wait_for(lambda: self._free > 0)
            self._free -= array.nbytes
        self._let_go()
        ready = self.compute.record()
        self._copies.wait_event(ready)
        memory = self._cupy.cuda.alloc_pinned_memory(max(array.nbytes, 1))
        host = np.frombuffer(memory, array.dtype, array.size).reshape(array.shape)
        self._cupy.cuda.runtime.memcpyAsync(
            host.ctypes.data,
            array.data.ptr,
            array.nbytes,
            self._cupy.cuda.runtime.memcpyDeviceToHost,
            self._copies.ptr,
        )
        done = self._copies.record()
        self._leaving.append((done, array, host))
        self._leaving_bytes += array.nbytes
        return Fetch(host, done, self._give_back)

    def _let_go(self) -> None:
        """Wait for the copies of arrays that keep too much memory.

        Others are kept whether or not they have arrived, so that the memory in use depends on no timing.
        """
        while self._leaving_bytes > LEAVING_BYTES:
            done, array, _ = self._leaving.popleft()
            done.synchronize()
            self._leaving_bytes -= array.nbytes

    def after(self, fetch: Fetch) -> None:
        """Kernels and copies from here on wait, on the GPU, until `fetch` has arrived."""
        self.compute.wait_event(fetch.done)

    def _give_back(self, nbytes: int) -> None:
        with self._room:
            self._free += nbytes
            self._room.notify()

    def capture(self, body: Callable[[], None]) -> Callable[[], None]:
        """Record what `body` launches as a graph; the result launches it again."""
        self.compute.begin_capture()
        try:
            body()
        finally:
            graph = self.compute.end_capture()
        return lambda: graph.launch(self.compute)

    def run(self, body: Callable[[], Any]) -> Any:
        """Call `body` with its launches and allocations on the compute stream; out of memory is one line."""
        try:
            with self.compute:
                return body()
        except self._cupy.cuda.memory.OutOfMemoryError as error:
            raise UserError(
                f"{self.name} is out of memory ({error}): record fewer tensors or tokens, feed the prompt in "
                "--chunk pieces, or use --engine cpu"
            ) from None

    @property
    def on_their_way(self) -> int:
        """Bytes that were fetched and not released yet."""
        return self._buffer_bytes - self._free

    def trim(self) -> None:
        """Give back what CuPy holds and no array uses."""
        self._cupy.get_default_memory_pool().free_all_blocks()

    def memory_used(self) -> int:
        """Bytes of device memory that CuPy holds."""
        return self._cupy.get_default_memory_pool().total_bytes()


def usable() -> bool:
    """True where CuPy is installed and sees a GPU."""
    if find_spec("cupy") is None:
        return False
    try:
        _import_cupy()
    except UserError:
        return False
    return True


def _import_cupy() -> Any:
    try:
        import cupy
    except ImportError:
        raise MissingExtra("CuPy", "cuda13") from None
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise UserError(f"no usable GPU ({error}): `trace doctor` says what is missing") from None
    if not count:
        raise UserError("no GPU is visible: check CUDA_VISIBLE_DEVICES, or use --engine cpu")
    return cupy
