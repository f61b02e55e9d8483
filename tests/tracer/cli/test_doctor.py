import json
import subprocess
import sys
from pathlib import Path

import pytest
from commands import run
from tensortrace.tracer.cli import checkup
from tensortrace.tracer.cli.checkup import Driver


@pytest.fixture
def machine(monkeypatch):
    """A machine with the given driver and packages."""

    def made(driver: Driver, **packages: str) -> None:
        versions = {name.replace("_", "-"): number for name, number in packages.items()}
        monkeypatch.setattr(checkup, "cuda_driver", lambda: driver)
        monkeypatch.setattr(checkup, "installed", lambda package: versions.get(package))
        has_cupy = any(name.startswith("cupy") for name in versions)
        monkeypatch.setattr(checkup, "find_spec", lambda name: object() if has_cupy else None)

    return made


def entry(what: str) -> checkup.Entry:
    return next(found for found in checkup.checkup() if found.what == what)


NEW = Driver((13, 0), ("NVIDIA H100",))
OLD = Driver((12, 4), ("NVIDIA A100",))


@pytest.mark.parametrize(
    ("driver", "packages", "ok", "advice"),
    [
        (Driver(None, (), "no NVIDIA driver"), {}, False, "needs an NVIDIA GPU"),
        (Driver((12, 4), (), "no GPU is visible"), {"cupy_cuda12x": "14.0"}, False, "needs an NVIDIA GPU"),
        (Driver((11, 8), ("K80",)), {}, False, "update the driver"),
        (OLD, {}, False, "tensortrace[cuda12]"),
        (NEW, {}, False, "tensortrace[cuda13]"),
        (OLD, {"cupy_cuda13x": "14.0"}, False, "tensortrace[cuda12]"),
        (OLD, {"cupy_cuda12x": "14.0"}, True, ""),
        (NEW, {"cupy_cuda12x": "14.0"}, True, ""),
        (NEW, {"cupy_cuda13x": "14.0"}, True, ""),
    ],
)
def test_which_cupy_fits(machine, driver, packages, ok, advice):
    machine(driver, **packages)
    found = entry("engine cuda")
    assert found.ok is ok
    assert advice in found.advice
    assert (found.advice == "") is ok


@pytest.mark.cxx
def test_compiled_kernels(machine):
    assert entry("compiled kernels").ok
    machine(NEW)  # where no module is found
    assert "C compiler" in entry("compiled kernels").advice


def test_other_engines(machine):
    machine(NEW, torch="2.13.0+cpu", transformers="4.60")
    assert entry("engine torch").ok
    assert "2.13.0+cpu" in entry("engine torch").found
    assert "tensortrace[llamacpp]" in entry("engine llama.cpp").advice


def test_the_driver_library(monkeypatch):
    class Library:
        def cuInit(self, flags):
            return self.code

        def cuDriverGetVersion(self, number):
            number._obj.value = 12080

        def cuDeviceGetCount(self, count):
            count._obj.value = 1

        def cuDeviceGet(self, device, index):
            device._obj.value = index

        def cuDeviceGetName(self, name, size, device):
            name.value = b"NVIDIA Test"

    library = Library()
    monkeypatch.setattr(checkup, "_load_driver", lambda: library)
    library.code = 0
    assert checkup.cuda_driver() == Driver((12, 8), ("NVIDIA Test",), "")
    library.code = 100
    assert "cuInit returned 100" in checkup.cuda_driver().trouble
    monkeypatch.setattr(checkup, "_load_driver", lambda: None)
    assert checkup.cuda_driver().cuda is None


def test_it_works_here_as_table_and_json():
    outcome = run("doctor")
    assert outcome.code == 0
    assert "engine cpu" in outcome.out
    assert {"what", "ok", "found", "advice", "needed"} == set(json.loads(run("doctor", "--json", "-").out)[0])


def test_trouble_where_the_cpu_engine_cannot_run(machine, monkeypatch):
    machine(NEW)
    monkeypatch.setattr(checkup, "_arrays", lambda: checkup.Entry("numpy", False, "broken", needed=True))
    assert run("doctor").code == 2


def test_heavy_packages_are_not_imported():
    program = (
        "import sys; from tensortrace.tracer.cli.checkup import checkup; checkup(); "
        "print([m for m in ('torch', 'transformers', 'cupy', 'llama_cpp') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_header_is_where_it_says(tmp_path):
    told = entry("header for C, C++, CUDA")
    assert told.ok
    folder = told.advice.removeprefix("cc -I").removesuffix(" …")
    assert "tt_step(" in (Path(folder) / told.found).read_text()
