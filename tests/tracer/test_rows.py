"""Rows written in one call: what the file holds, and checksums against the xxHash library."""

import ctypes
import errno
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensortrace.tracer.rows import CHUNK, LIBRARY, Run, write_columns, write_runs

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("both_kernel_sets")


def some_rows(count: int, size: int) -> list[np.ndarray]:
    random = np.random.default_rng(count * 100_003 + size)
    return [random.integers(0, 256, size, dtype=np.uint8) for _ in range(count)]


def check(path: Path, runs: list[Run]) -> None:
    with path.open("wb") as file:
        sums = write_runs(file.fileno(), runs)
    rows = [row for run in runs for row in run.rows]
    assert sums.tolist() == [xxhash.xxh3_64_intdigest(row) for row in rows]
    data = path.read_bytes()
    for run in runs:
        whole = b"".join(bytes(row) for row in run.rows)
        assert data[run.offset : run.offset + len(whole)] == whole


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5000), st.integers(0, 99)), min_size=1))
def test_rows_lie_where_they_belong(tmp_path: Path, shapes: list[tuple[int, int, int]]) -> None:
    runs, offset = [], 0
    for count, size, gap in shapes:
        runs.append(Run(offset + gap, some_rows(count, size)))
        offset += gap + count * size
    check(tmp_path / "rows", runs)


@pytest.mark.parametrize(
    "size",
    [
        1,
        3,
        4,
        8,
        9,
        16,
        17,
        32,
        33,
        64,
        65,
        96,
        97,
        128,
        129,
        240,
        241,
        256,
        257,
        1023,
        1024,
        1025,
        65_536,
        1_000_003,
    ],
)
def test_checksums_at_the_seams_of_the_algorithm(tmp_path: Path, size: int) -> None:
    check(tmp_path / "rows", [Run(0, some_rows(3, size))])


@pytest.mark.parametrize("past", [-65, -64, -1, 0, 1, 63, 64, 65, 300])
def test_rows_longer_than_one_write(tmp_path: Path, past: int) -> None:
    """They are summed piece by piece, alone and among short ones; the last piece may be a byte."""
    (one,), (two,) = some_rows(1, CHUNK + past), some_rows(1, 2 * CHUNK + past)
    check(tmp_path / "rows", [Run(64, [one])])
    check(tmp_path / "rows", [Run(5, [*some_rows(2, 999), two, *some_rows(1, 17), one])])


@pytest.mark.cxx
@pytest.mark.parametrize("size", [300, 1023, 1024, 1025, 66_000])
def test_checksums_on_other_processors(tmp_path: Path, size: int) -> None:
    """The same source without vectors written by hand."""
    source, library = tmp_path / "sum.c", tmp_path / "sum.so"
    source.write_text('#include "xxh3.h"\nuint64_t sum(void *p, size_t n) { return xxh3(p, n); }\n')
    options = ["-O2", "-shared", "-fPIC", "-DWITHOUT_VECTORS", f"-I{ROOT / 'tracer'}"]
    subprocess.run(["cc", *options, "-o", str(library), str(source)], check=True)
    (row,) = some_rows(1, size)
    made = ctypes.CDLL(str(library)).sum
    made.restype = ctypes.c_uint64
    assert made(ctypes.c_void_p(row.ctypes.data), ctypes.c_size_t(size)) == xxhash.xxh3_64_intdigest(row)


def test_more_rows_than_one_system_call_takes(tmp_path: Path) -> None:
    check(tmp_path / "rows", [Run(7, some_rows(2100, 300))])


def test_nothing_to_write(tmp_path: Path) -> None:
    check(tmp_path / "rows", [])
    check(tmp_path / "rows", [Run(0, [])])


LIMITED = """
import resource, signal, sys
from tensortrace.tracer import rows
if sys.argv[2] == "numpy":
    rows.LIBRARY = None
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
size = int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_FSIZE, (10 * size // 3, resource.RLIM_INFINITY))
with open(sys.argv[1], "wb") as file:
    try:
        rows.write_runs(file.fileno(), [rows.Run(0, [memoryview(bytes([i]) * size) for i in range(5)])])
    except OSError as error:
        print(error.errno)
"""


@pytest.mark.parametrize("size", [300, 3 * CHUNK])
def test_a_write_that_stops_inside_a_row_is_an_error(
    tmp_path: Path, both_kernel_sets: str, size: int
) -> None:
    """The kernel writes up to the limit first; the rest is tried again, and refused."""
    command = [sys.executable, "-c", LIMITED, str(tmp_path / "rows"), both_kernel_sets, str(size)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(errno.EFBIG)]
    assert (tmp_path / "rows").read_bytes() == b"".join(bytes([i]) * size for i in range(5))[: 10 * size // 3]


def test_columns_of_blocks(tmp_path: Path) -> None:
    blocks = some_rows(300, 1000)
    columns = np.array([(0, 36, 5), (40, 700, 11_000), (900, 1, 3)], np.int64)
    columns[2, 2] = 300_000
    with (tmp_path / "rows").open("wb") as file:
        sums = write_columns(file.fileno(), columns, blocks)
    data = (tmp_path / "rows").read_bytes()
    for number, (begin, size, offset) in enumerate(columns.tolist()):
        rows = [block[begin : begin + size].tobytes() for block in blocks]
        assert data[offset : offset + 300 * size] == b"".join(rows)
        assert sums[:, number].tolist() == [xxhash.xxh3_64_intdigest(row) for row in rows]


@pytest.mark.cxx
def test_rows_outside_of_their_block_are_refused(tmp_path: Path) -> None:
    with (tmp_path / "rows").open("wb") as file:
        for column in ((0, 101, 0), (90, 11, 0), (-1, 5, 0)):
            with pytest.raises(ValueError, match="do not fit together"):
                LIBRARY.write_columns(
                    file.fileno(),
                    np.array([column], np.int64),
                    some_rows(2, 100),
                    np.empty((2, 1), np.uint64),
                )
