"""The figures of a pair, against float64 done the plain way."""

import mmap
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from tensortrace.analyze.blocks import BLOCK, MASKED, Piece
from tensortrace.analyze.mapped import give_back
from tensortrace.analyze.metrics import TASK, Measured, measure

pytestmark = pytest.mark.usefixtures("both_kernel_sets")
BF16 = np.dtype(ml_dtypes.bfloat16)


def one(a: np.ndarray, b: np.ndarray, **piece) -> Measured:
    return measure([Piece(0, a, b, 0, **piece)], 1, 1, workers=2)


@np.errstate(invalid="ignore", divide="ignore")
def plain(a: np.ndarray, b: np.ndarray, masked: bool = False) -> dict[str, float]:
    """The same figures in float64, element by element."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    hidden_a, hidden_b = (masked & (side <= MASKED) for side in (a, b))
    used = np.isfinite(a) & np.isfinite(b) & ~hidden_a & ~hidden_b
    alike = (a == b) | (np.isnan(a) & np.isnan(b))
    x, y = a[used], b[used]
    dot, xx, yy, dd = x @ y, x @ x, y @ y, (x - y) @ (x - y)
    return {
        "count": used.sum(),
        "nrmse": np.sqrt(dd / yy) if dd else 0.0,
        "max_abs": np.abs(x - y).max(initial=0),
        "cosine": dot / np.sqrt(xx * yy),
        "scale": dot / yy,
        "rms_a": np.sqrt(xx / max(len(x), 1)),
        "rms_b": np.sqrt(yy / max(len(x), 1)),
        "nan_a": np.isnan(a).sum(),
        "nan_b": np.isnan(b).sum(),
        "inf_a": (np.isinf(a) & ~hidden_a).sum(),
        "inf_b": (np.isinf(b) & ~hidden_b).sum(),
        "mask_differs": (hidden_a != hidden_b).sum(),
        "clashes": (~used & ~alike & ~hidden_a & ~hidden_b).sum(),
    }


def figure(measured: Measured, name: str) -> float:
    known = getattr(type(measured), name, None)
    return float((measured.total(name) if known is None else getattr(measured, name))[0, 0])


def check(a: np.ndarray, b: np.ndarray, masked: bool = False, rel: float = 1e-5, **piece) -> None:
    found, expected = one(a, b, masked=masked, **piece), plain(a, b, masked)
    for name, value in expected.items():
        if np.isfinite(value):
            # a dot product of n float32 terms is off by about 1e-7 of |a| |b|, however small it is
            least = 1e-6 if name == "cosine" else 0
            assert figure(found, name) == pytest.approx(value, rel=rel, abs=least), name


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("error", [1e-7, 1e-3, 1.0, 30.0])
def test_small_and_large_differences(dtype, error):
    rng = np.random.default_rng(0)
    b = rng.standard_normal((300, 576)).astype(dtype)
    check((b * (1 + error * rng.standard_normal(b.shape))).astype(dtype), b)


def test_a_scale_of_one_part_in_ten_million_is_seen():
    b = np.random.default_rng(0).standard_normal((64, 4096)).astype(np.float32)
    a = (b.astype(np.float64) * (1 + 3e-7)).astype(np.float32)
    expected = plain(a, b)
    assert figure(one(a, b), "scale") - 1 == pytest.approx(expected["scale"] - 1, rel=1e-4)
    assert 1 - figure(one(a, b), "cosine") == pytest.approx(0, abs=1e-13)


@pytest.mark.parametrize("offset", [1e4, -1e6, 1e18])
def test_huge_offsets(offset):
    rng = np.random.default_rng(1)
    b = (rng.standard_normal((50, 1000)) + offset).astype(np.float32)
    check((b * np.float32(1.0001)).astype(np.float32), b)


@pytest.mark.parametrize("size", [1e25, 1e-22])
def test_squares_that_leave_float32(size):
    rng = np.random.default_rng(2)
    b = (size * rng.standard_normal((20, 300))).astype(np.float32)
    check((b * np.float32(1.01)).astype(np.float32), b)


@pytest.mark.parametrize("left", [np.float16, BF16, np.float32, np.float64])
@pytest.mark.parametrize("right", [np.float16, BF16, np.float64])
def test_every_pair_of_precisions(left, right):
    values = np.random.default_rng(3).standard_normal((40, 640))
    check(values.astype(left), values.astype(right), rel=1e-4)


def test_our_side_far_smaller_than_the_reference():
    rng = np.random.default_rng(4)
    b = rng.standard_normal((64, 512)).astype(np.float32)
    check((1e-4 * b + 1e-6 * rng.standard_normal(b.shape)).astype(np.float32), b)


def test_near_and_far_rows_in_one_block_keep_their_digits():
    b = np.random.default_rng(5).standard_normal((4, 512)).astype(np.float32)
    a = b * np.array([[1 + 1e-6], [50.0], [1.0], [-1.0]], np.float32)
    steps = np.arange(4)
    found = measure([Piece(0, a, b, steps)], 1, 4)
    for step in steps:
        expected = plain(a[step : step + 1], b[step : step + 1])
        assert found.scale[0, step] == pytest.approx(expected["scale"], rel=1e-6)
        assert found.nrmse[0, step] == pytest.approx(expected["nrmse"], rel=1e-5)


def test_equal_values_are_equal():
    a = np.random.default_rng(6).standard_normal((100, 100)).astype(np.float32)
    found = one(a, a.copy())
    assert found.equal[0, 0]
    assert (figure(found, "nrmse"), figure(found, "cosine"), figure(found, "scale")) == (0, 1, 1)


def test_masks_are_left_out_and_counted():
    rng = np.random.default_rng(7)
    b = rng.standard_normal((200, 200)).astype(np.float32)
    mask = np.triu(np.ones(b.shape, bool), 1)
    b[mask] = -np.inf
    a = np.where(mask, np.float32(-np.finfo(np.float32).max), b * np.float32(1.001))
    check(a, b, masked=True)
    found = one(a, b, masked=True)
    assert figure(found, "masked_a") == figure(found, "masked_b") == mask.sum()
    assert figure(found, "mag_b") == pytest.approx(np.abs(b[~mask]).max())


def test_masks_that_differ_are_counted():
    b = np.ones((10, 10), np.float32)
    a = b.copy()
    b[0, 5:] = -np.inf
    found = one(a, b, masked=True)
    assert (figure(found, "mask_differs"), figure(found, "nrmse")) == (5, 0)
    assert not found.equal[0, 0]


def test_minus_infinity_is_no_mask_outside_scores():
    a = np.array([[-np.inf, 1.0]], np.float32)
    found = one(a, a.copy())
    assert (figure(found, "inf_a"), figure(found, "masked_a")) == (1, 0)
    assert found.equal[0, 0]


def test_not_finite_on_one_side_clashes():
    b = np.ones((3, 5), np.float32)
    a = b.copy()
    a[0, 0], a[1, 1], a[2, 2] = np.nan, np.inf, 2
    check(a, b)
    assert not one(a, b).equal[0, 0]
    assert one(a, a.copy()).equal[0, 0]


def test_nothing_finite_in_common_has_no_nrmse():
    found = one(np.full((2, 2), np.nan, np.float32), np.ones((2, 2), np.float32))
    assert np.isnan(figure(found, "nrmse"))
    assert found.compared[0, 0]


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
def test_empty_is_not_compared(shape):
    found = one(np.empty(shape, np.float32), np.empty(shape, np.float32))
    assert not found.compared.any()


def test_integers():
    a = np.array([[1, 2, 3]], np.int32)
    check(a, np.array([[1, 2, 4]], np.int64))


def test_head_vectors():
    rng = np.random.default_rng(8)
    a, b = rng.standard_normal((2, 30, 4 * 16)).astype(np.float32)
    found = one(a, b, head_dim=16)
    for name, side in (("mag_a", a), ("mag_b", b)):
        norms = np.linalg.norm(side.reshape(-1, 16), axis=1)
        assert figure(found, name) == pytest.approx(norms.mean(), rel=1e-6)


def test_rows_are_told_apart_by_step_and_padding_does_not_count():
    rng = np.random.default_rng(9)
    a, b = rng.standard_normal((2, 6, 8)).astype(np.float32)
    valid = np.array([1, 2, 3, 4, 5, 6])
    for side in (a, b):
        side[np.arange(8) >= valid[:, None]] = np.nan
    steps = np.array([3, 3, 4, 4, 4, 7])
    found = measure([Piece(0, a, b, steps, 0, True, valid)], 1, 8)
    for step in (3, 4, 7):
        rows = np.flatnonzero(steps == step)
        x, y = (np.concatenate([side[row, : valid[row]] for row in rows])[None] for side in (a, b))
        assert found.nrmse[0, step] == pytest.approx(plain(x, y)["nrmse"], rel=1e-5)
        assert found.total("count")[0, step] == valid[rows].sum()
        assert found.total("nan_a")[0, step] == 0


def test_pieces_of_one_pair_add_up_over_blocks_and_workers():
    rng = np.random.default_rng(10)
    b = rng.standard_normal((2 * TASK // 1000 + 3, 1000)).astype(np.float32)
    a = b + np.float32(1e-4)
    assert a.size > 2 * TASK > 2 * BLOCK
    check(a, b)
    halves = [Piece(0, a[part], b[part], 0) for part in (slice(0, 700), slice(700, None))]
    assert measure(halves, 1, 1).nrmse == pytest.approx(one(a, b).nrmse, rel=1e-9)


def test_rows_wider_than_a_block():
    rng = np.random.default_rng(11)
    b = rng.standard_normal((2, BLOCK + 1000)).astype(np.float32)
    check(b * np.float32(1.001), b)


SPECIAL = st.sampled_from([0.0, -0.0, 1.0, -1e-20, 1e20, 3e38, np.nan, np.inf, -np.inf, MASKED])
VALUES = st.one_of(st.floats(-1e3, 1e3, width=32), SPECIAL)


@settings(max_examples=200, deadline=None)
@given(st.data(), array_shapes(min_dims=2, max_dims=2, max_side=12), st.booleans())
def test_any_values(data, shape, masked):
    a = data.draw(arrays(np.float32, shape, elements=VALUES))
    b = data.draw(st.one_of(st.just(a.copy()), arrays(np.float32, shape, elements=VALUES)))
    found, expected = one(a, b, masked=masked), plain(a, b, masked)
    for name in ("count", "max_abs", "nan_a", "nan_b", "inf_a", "inf_b", "mask_differs", "clashes"):
        assert figure(found, name) == pytest.approx(expected[name], rel=1e-6), name
    assert found.equal[0, 0] == np.array_equal(
        np.maximum(a, MASKED) if masked else a, np.maximum(b, MASKED) if masked else b, equal_nan=True
    )
    if np.isfinite(expected["nrmse"]) and expected["rms_b"] > 1e-12:
        assert figure(found, "nrmse") == pytest.approx(expected["nrmse"], rel=1e-3, abs=1e-12)


def resident_file_pages() -> int:
    """Bytes of mapped files that are in this process's memory."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssFile"))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_mapped_pages_are_given_back(tmp_path):
    np.zeros(64 << 20, np.uint8).tofile(tmp_path / "data")
    mapped = np.asarray(np.memmap(tmp_path / "data", np.float32, "r").reshape(-1, 1024))
    before = resident_file_pages()
    one(mapped, mapped)
    assert resident_file_pages() - before < 16 << 20


def test_giving_back_pages_keeps_the_data(tmp_path):
    np.arange(1 << 16, dtype=np.float32).tofile(tmp_path / "data")
    mapped = np.asarray(np.memmap(tmp_path / "data", np.float32, "r"))
    expected = mapped.copy()
    give_back(mapped[mmap.PAGESIZE // 8 :])
    assert np.array_equal(mapped, expected)
    give_back(expected)  # not mapped: nothing to do
    give_back(mapped[:0])
