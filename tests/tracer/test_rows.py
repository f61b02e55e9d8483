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
from tensortrace.tracer.rows import AXES, CHUNK, IOV_MAX, LIBRARY, write_columns, write_row

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("both_kernel_sets")


def some_rows(count: int, size: int) -> list[np.ndarray]:
    random = np.random.default_rng(count * 100_003 + size)
    return [random.integers(0, 256, size, dtype=np.uint8) for _ in range(count)]


def check_row(path: Path, row: np.ndarray, offset: int = 0) -> None:
    with path.open("wb") as file:
        assert write_row(file.fileno(), offset, memoryview(row)) == xxhash.xxh3_64_intdigest(row)
    assert path.read_bytes() == bytes(offset) + row.tobytes()


def check_columns(path: Path, columns: list[tuple[int, int, int]], blocks: list[np.ndarray]) -> None:
    with path.open("wb") as file:
        sums = write_columns(file.fileno(), np.array(columns, np.int64).reshape(-1, 3), blocks)
    data = path.read_bytes()
    assert sums.shape == (len(blocks), len(columns))
    for number, (begin, size, offset) in enumerate(columns):
        rows = [block[begin : begin + size].tobytes() for block in blocks]
        assert data[offset : offset + len(blocks) * size] == b"".join(rows)
        assert sums[:, number].tolist() == [*map(xxhash.xxh3_64_intdigest, rows)]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(1, 5000), st.integers(0, 99)), min_size=1),
    st.integers(1, 5),
)
def test_rows_lie_where_they_belong(tmp_path: Path, shapes: list[tuple[int, int, int]], count: int) -> None:
    """Columns with some bytes between them in the blocks, and in the file."""
    columns, begin, offset = [], 0, 0
    for before, size, gap in shapes:
        columns.append((begin + before, size, offset + gap))
        begin, offset = begin + before + size, offset + gap + count * size
    check_columns(tmp_path / "rows", columns, some_rows(count, begin))


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
    for row in some_rows(3, size):
        check_row(tmp_path / "rows", row)
    check_columns(tmp_path / "rows", [(0, size, 0)], some_rows(3, size))


@pytest.mark.parametrize("past", [-65, -64, -1, 0, 1, 63, 64, 65, 300])
def test_rows_longer_than_one_write(tmp_path: Path, past: int) -> None:
    """They are summed piece by piece, alone and among short ones; the last piece may be a byte."""
    (one,), (two,) = some_rows(1, CHUNK + past), some_rows(1, 2 * CHUNK + past)
    check_row(tmp_path / "rows", one, 64)
    check_row(tmp_path / "rows", two, 5)
    columns = [(0, 999, 5), (1000, CHUNK + past, 10_000), (1000 + CHUNK + past, 17, 4 * CHUNK)]
    check_columns(tmp_path / "rows", columns, some_rows(2, 2 * CHUNK))


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
    check_columns(tmp_path / "rows", [(0, 300, 7)], some_rows(2 * IOV_MAX + 52, 300))


def test_nothing_to_write(tmp_path: Path) -> None:
    check_columns(tmp_path / "rows", [], some_rows(2, 10))
    check_columns(tmp_path / "rows", [(0, 10, 0)], [])


LIMITED = """
import numpy, resource, signal, sys
from tensortrace.tracer import rows
if sys.argv[2] == "numpy":
    rows.LIBRARY = None
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
size = int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_FSIZE, (10 * size // 3, resource.RLIM_INFINITY))
with open(sys.argv[1], "wb") as file:
    try:
        blocks = [numpy.full(size, i, numpy.uint8) for i in range(5)]
        rows.write_columns(file.fileno(), numpy.array([(0, size, 0)], numpy.int64), blocks)
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


@pytest.mark.cxx
def test_arrays_that_do_not_fit_are_not_packed() -> None:
    """Their room ends outside of the block, they have other axes, or there are not as many as spots."""
    array, block = np.ones((2, 3), np.float32), np.zeros(64, np.uint8)

    def packed(at: int, axes: int, *room: int, count: int = 1) -> list[int]:
        spots = np.array([(at, ord("f"), 0xFF, axes, *room, *[1] * (AXES - len(room)))], np.int64)
        sizes = np.array([(2, 3, *[1] * (AXES - 2))], np.int64)
        return LIBRARY.pack([array] * count, spots, sizes, block)

    assert packed(40, 2, 2, 3) == []
    assert block[40:].view(np.float32).tolist() == [1.0] * 6
    assert not block[:40].any()
    for at, axes, *room in (
        (44, 2, 2, 3),
        (-4, 2, 2, 3),
        (0, 3, 2, 3),
        (0, 1, 6),
        (0, 9, 2, 3),
        (0, 2, 1, 3),
    ):
        assert packed(at, axes, *room) == [0]
    with pytest.raises(ValueError, match="do not fit together"):
        packed(0, 2, 2, 3, count=2)
