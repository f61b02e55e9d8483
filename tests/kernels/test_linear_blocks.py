"""The compiled product with quantised weights: gguf's own values, multiplied in float64."""

import ctypes
import subprocess
from pathlib import Path

import numpy as np
import pytest
from cuda_arrays import draw, random_blocks
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize
from tensortrace.kernels import linear, native
from tensortrace.kernels.dequantize import LAYOUT, Blocks

pytestmark = pytest.mark.cxx
ROOT = Path(__file__).parents[2]
COLUMNS = (256, 768, 1536)


def exactly(x: np.ndarray, weight: Blocks) -> np.ndarray:
    values = dequantize(weight.data, GGMLQuantizationType[weight.kind])
    return x.astype(np.float64) @ values.astype(np.float64).T


def close(got: np.ndarray, x: np.ndarray, weight: Blocks) -> bool:
    """Within float32's rounding of the sum's terms: |x| · |w|, which cancel where weights have both signs."""
    values = np.abs(dequantize(weight.data, GGMLQuantizationType[weight.kind])).astype(np.float64)
    room = 1e-6 * np.abs(x).astype(np.float64) @ values.T
    return bool((np.abs(got - exactly(x, weight)) <= room).all())


@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.parametrize("rows", [1, 37, 3000])
@pytest.mark.parametrize("kind", sorted(linear.COMPILED))
def test_every_type(kind: str, rows: int, columns: int) -> None:
    weight, x = random_blocks(kind, rows, columns), draw(1, columns, seed=1)
    assert linear.reads_blocks(kind)
    got = linear.cpu(x, weight)
    assert got.dtype == np.float32
    assert close(got, x, weight)
    assert np.array_equal(got, linear.cpu(x, weight)), "the rows' sums depend on the number of threads"


def test_heads_and_bias() -> None:
    weight, x, bias = random_blocks("Q4_1", 64, 256), draw(1, 4, 64, seed=1), draw(64, seed=2)
    got = linear.cpu(x, weight, bias, heads=4)
    assert got.shape == (1, 4, 16)
    assert close(got.reshape(1, -1) - bias, x.reshape(1, -1), weight)


def test_scales_at_the_ends_of_float16() -> None:
    """Subnormal scales count, and infinite ones show."""
    weight, x = random_blocks("Q8_0", 3, 256), draw(1, 256, seed=1)
    scales = weight.data.reshape(3, 8, 34)[:, :, :2]
    scales[0] = np.frombuffer(np.float16(6e-8).tobytes(), np.uint8)
    scales[1] = np.frombuffer(np.float16(np.inf).tobytes(), np.uint8)
    got = linear.cpu(x, weight)
    assert not np.isfinite(got[0, 1])
    finite = Blocks(weight.data[[0, 2]], "Q8_0")
    assert close(got[:, [0, 2]], x, finite)


def test_arrays_that_do_not_fit_are_refused() -> None:
    weight, out = random_blocks("Q4_1", 4, 256), np.empty(4, np.float32)
    for kind, columns, why in (
        ("Q4_1", 224, "do not fit together"),
        ("Q4_0", 256, "do not fit together"),
        ("F32", 256, "no product with F32"),
    ):
        with pytest.raises(ValueError, match=why):
            native.LIBRARY.multiply(kind, weight.data, draw(1, columns), out)


@pytest.fixture(scope="session", params=["WITHOUT_AVX512", "WITHOUT_VECTORS"])
def lesser(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The same source as older processors run it."""
    library = tmp_path_factory.mktemp("linear") / "lesser.so"
    options = [
        "-O2",
        "-fopenmp-simd",
        "-ffp-contract=off",
        "-pthread",
        "-shared",
        "-fPIC",
        f"-D{request.param}",
    ]
    sources = [str(ROOT / "kernels" / name) for name in ("linear.c", "team.c")]
    subprocess.run(["cc", *options, "-o", str(library), *sources], check=True)
    return ctypes.CDLL(str(library))


@pytest.mark.parametrize("kind", sorted(linear.COMPILED))
def test_on_other_processors(lesser: ctypes.CDLL, kind: str) -> None:
    weight, x = random_blocks(kind, 37, 768), draw(1, 768, seed=1)
    out, sums = np.empty((1, 37), np.float32), np.empty(768, np.float32)
    lesser.format_of.restype = ctypes.c_void_p
    described = ctypes.c_void_p(lesser.format_of(kind.encode()))
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in (weight.data, x, sums, out)]
    data, read, scratch, made = pointers
    lesser.multiply(described, data, ctypes.c_long(37), ctypes.c_long(768), read, scratch, made)
    assert close(out, x, weight)


def test_the_types_are_those_that_the_source_knows() -> None:
    assert set(LAYOUT) >= linear.COMPILED
    for kind in linear.COMPILED:
        block, size = LAYOUT[kind]
        native.LIBRARY.multiply(kind, np.zeros(size, np.uint8), draw(block), np.empty(1, np.float32))
