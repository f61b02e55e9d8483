"""The CPU target finds the faults for which it is there, and none in a sound kernel."""

import numpy as np
import pytest

pytestmark = pytest.mark.cxx
IN = np.arange(64, dtype=np.float32)


def run(device, kernel):
    def compute():
        source, result = device.put(IN), device.empty(IN.shape, IN.dtype)
        device.kernel("faulty.cu", kernel)((1,), (64,), (source, result), shared_mem=256)
        return result

    return device.run(compute)


def test_a_sound_kernel_runs_also_after_faulty_ones(host_device):
    for kernel in ("reverse", "diverge", "reverse", "overrun_shared", "reverse"):
        if kernel == "reverse":
            assert np.array_equal(run(host_device, kernel), IN[::-1])
        else:
            with pytest.raises(AssertionError):
                run(host_device, kernel)


@pytest.mark.parametrize(
    ("kernel", "complaint"),
    [
        ("reverse_without_barrier", "two runs differ"),
        ("diverge", "a __syncthreads that not every thread reaches"),
        ("overrun_shared", "a write past the end of shared memory"),
        ("overrun", "a write outside an array"),
        ("missing", "no such kernel"),
    ],
)
def test_a_fault_is_named(host_device, kernel, complaint):
    with pytest.raises(AssertionError, match=complaint):
        run(host_device, kernel)


def test_arguments_of_other_sizes_are_refused(host_device):
    with pytest.raises(AssertionError, match="arguments that do not fit"):
        host_device.kernel("faulty.cu", "reverse")((1,), (1,), (host_device.put(IN), np.int32(1)))
