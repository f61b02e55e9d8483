"""What `trace doctor` looks at.  Versions come from package metadata: nothing heavy is imported for them."""

import ctypes
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

CUPY = {12: "cuda12", 13: "cuda13"}  # CUDA's major version -> our extra


class Entry(NamedTuple):
    """One line: `ok` is None for what is only told; without a `needed` one nothing works."""

    what: str
    ok: bool | None
    found: str
    advice: str = ""
    needed: bool = False


def checkup() -> list[Entry]:
    """Everything that matters for running and reading, in the order in which a person would ask."""
    driver = cuda_driver()
    return [
        Entry("python", sys.version_info >= (3, 11), platform.python_version(), needed=True),
        Entry("tensortrace", True, installed("tensortrace") or "not installed"),
        _arrays(),
        _trace_files(),
        _machine(),
        _cache(),
        Entry("engine cpu", _arrays().ok, "runs on NumPy", "", needed=True),
        _compiled(),
        _driver(driver),
        _cuda(driver),
        _optional("engine torch", ("torch", "transformers"), "torch"),
        _optional("engine llama.cpp", ("llama-cpp-python",), "llamacpp"),
        _header(),
    ]


def _header() -> Entry:
    """The header with which programs in C, C++, CUDA or Rust record."""
    from ..execute import HEADER, header_folder

    folder = header_folder()
    found = (folder / HEADER).is_file()
    advice = f"cc -I{folder} …" if found else "pip install --force-reinstall tensortrace"
    return Entry("header for C, C++, CUDA", found, HEADER if found else "not installed", advice)


def _compiled() -> Entry:
    """What is only quicker for having been compiled when the package was installed."""
    missing = [
        name for name in ("kernels._native", "tracer._rows") if find_spec(f"tensortrace.{name}") is None
    ]
    found = "not there: decoding, comparing and writing take longer" if missing else "used"
    advice = "install a C compiler, then tensortrace again" if missing else ""
    return Entry("compiled kernels", not missing, found, advice)


def installed(package: str) -> str | None:
    """The version of an installed distribution."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _arrays() -> Entry:
    """NumPy and the library that multiplies its matrices."""
    try:
        import numpy as np
    except ImportError as error:
        return Entry("numpy", False, str(error), "pip install --force-reinstall numpy", needed=True)
    blas = np.show_config(mode="dicts").get("Build Dependencies", {}).get("blas", {})
    names = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    limit = next((f"{name}={os.environ[name]}" for name in names if name in os.environ), "one thread a core")
    return Entry("numpy", True, f"{np.__version__}, BLAS {blas.get('name', 'unknown')}, {limit}", needed=True)


def _trace_files() -> Entry:
    try:
        import h5py
    except ImportError as error:
        return Entry("h5py", False, str(error), "pip install --force-reinstall h5py", needed=True)
    return Entry("h5py", True, f"{h5py.version.version}, HDF5 {h5py.version.hdf5_version}", needed=True)


def _machine() -> Entry:
    import psutil

    from ..text import human_bytes

    memory = psutil.virtual_memory()
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        cores = os.cpu_count() or 1
    used = f"{human_bytes(memory.available)} of {human_bytes(memory.total)} memory free"
    return Entry("machine", None, f"{cores} cores, {used}, {platform.system()} {platform.machine()}")


def _cache() -> Entry:
    from ..hub import DEFAULT, cache_folder, cached

    here = cached(DEFAULT) is not None
    advice = "" if here else f"trace pull {DEFAULT}"
    return Entry("models", None, f"{cache_folder()}: {DEFAULT} is {'' if here else 'not '}there", advice)


class Driver(NamedTuple):
    """NVIDIA's driver: the CUDA version that it supports, as (12, 8), and its GPUs; or what is wrong."""

    cuda: tuple[int, int] | None
    gpus: tuple[str, ...]
    trouble: str = ""


def cuda_driver() -> Driver:
    """Ask the driver library itself: nothing of CUDA needs to be installed for it."""
    library = _load_driver()
    if library is None:
        seen = Path("/proc/driver/nvidia/version").exists()
        return Driver(None, (), "libcuda is missing" if seen else "no NVIDIA driver")
    code = library.cuInit(0)
    if code:
        return Driver(None, (), f"the driver does not start (cuInit returned {code})")
    number, count = ctypes.c_int(), ctypes.c_int()
    library.cuDriverGetVersion(ctypes.byref(number))
    library.cuDeviceGetCount(ctypes.byref(count))
    gpus = tuple(_gpu_name(library, index) for index in range(count.value))
    return Driver(
        (number.value // 1000, number.value % 1000 // 10), gpus, "" if gpus else "no GPU is visible"
    )


def _load_driver() -> ctypes.CDLL | None:
    for name in ("libcuda.so.1", "nvcuda.dll"):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def _gpu_name(library: ctypes.CDLL, index: int) -> str:
    device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    library.cuDeviceGet(ctypes.byref(device), index)
    library.cuDeviceGetName(name, len(name), device)
    return name.value.decode("utf-8", "replace")


def _driver(driver: Driver) -> Entry:
    if driver.cuda is None:
        return Entry("NVIDIA driver", False, driver.trouble, "install NVIDIA's driver (needed for CUDA only)")
    gpus = ", ".join(driver.gpus) or driver.trouble
    return Entry("NVIDIA driver", bool(driver.gpus), f"up to CUDA {driver.cuda[0]}.{driver.cuda[1]}: {gpus}")


def _cuda(driver: Driver) -> Entry:
    """The CUDA engine needs CuPy for a CUDA that the driver supports."""
    wheels = {major: installed(f"cupy-cuda{major}x") for major in CUPY}
    have = {major: number for major, number in wheels.items() if number}
    names = (
        ", ".join(f"cupy-cuda{major}x {number}" for major, number in have.items()) or "CuPy is not installed"
    )
    if driver.cuda is None or not driver.gpus:
        return Entry("engine cuda", False, f"no usable GPU; {names}", "needs an NVIDIA GPU and its driver")
    fitting = max((major for major in CUPY if major <= driver.cuda[0]), default=None)
    if fitting is None:
        return Entry("engine cuda", False, names, "update the driver: CUDA 12 or newer is needed")
    if any(major <= driver.cuda[0] for major in have) and find_spec("cupy"):
        return Entry("engine cuda", True, names)
    return Entry("engine cuda", False, names, f"pip install 'tensortrace[{CUPY[fitting]}]'")


def _optional(what: str, packages: tuple[str, ...], extra: str) -> Entry:
    """An engine that needs other packages; they are not imported, which would take seconds."""
    versions = {package: installed(package) for package in packages}
    found = ", ".join(f"{package} {number or 'not installed'}" for package, number in versions.items())
    ok = all(versions.values())
    return Entry(what, ok, found, "" if ok else f"pip install 'tensortrace[{extra}]'")
