"""Every instantiation of every kernel compiles for the GPUs in use, and none spills registers."""

import re
import subprocess

import pytest
from tensortrace.kernels import cuda as gpu

pytestmark = pytest.mark.nvcc
ARCHITECTURES = ("sm_80", "sm_90")
REPORT = re.compile(  # what ptxas prints of a kernel: name, stack, spilled bytes, registers
    r"entry function '(\w+)'.*\n.*\n\s*(\d+) bytes stack frame, (\d+) bytes spill.*\n.*Used (\d+) reg"
)


def sources():
    return sorted(path.name for path in gpu.SOURCES.glob("*.cu"))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("source", sources())
def test_kernels_compile(expressions, tmp_path, source, architecture):
    """The report (registers, spills) shows with `pytest -s`."""
    names = "".join(f"(void*){name},\n" for name in expressions[source])
    program = tmp_path / "program.cu"
    program.write_text(f'#include "{source}"\nvoid* kernels[] = {{\n{names}}};\n')
    done = subprocess.run(
        [
            *("nvcc", *gpu.OPTIONS, "-cubin", f"-arch={architecture}", "-Xptxas", "-v", "-ftz=true"),
            *("-o", tmp_path / "program.cubin", program),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    entries = REPORT.findall(done.stderr)
    assert len(entries) == len(expressions[source])
    for name, stack, spilled, registers in sorted(entries):
        print(f"{architecture} {source} {name}: {registers} registers, {stack} B stack, {spilled} B spilled")
        assert spilled == "0", name
