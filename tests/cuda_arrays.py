"""Arrays and quantised weights for the tests of CUDA kernels, and how close a result must be."""

import ml_dtypes
import numpy as np
from tensortrace.kernels.dequantize import LAYOUT, Blocks

DTYPES = (np.float32, np.float16, ml_dtypes.bfloat16)
# what rounding the result to the storage type alone gives is a third of this
NRMSE = {"float32": 1e-6, "float16": 1e-3, "bfloat16": 8e-3}


def draw(*shape, dtype=np.float32, seed=0, scale=1.0):
    return (scale * np.random.default_rng([seed, *shape]).standard_normal(shape)).astype(dtype)


def exact(array):
    return np.asarray(array).astype(np.float64)


def nrmse(got, want):
    """Root-mean-square error over the root-mean-square of what is wanted; infinities must agree."""
    got, want = exact(got), exact(want)
    assert got.shape == want.shape
    finite = np.isfinite(want)
    assert np.array_equal(got[~finite], want[~finite])
    error = np.linalg.norm(got[finite] - want[finite])
    return error / np.linalg.norm(want[finite]) if error else 0.0


def assert_close(got, want, dtype):
    assert nrmse(got, want) <= NRMSE[np.dtype(dtype).name]


# where a block keeps its float16 scales; every other byte may be anything
SCALES = {
    **dict.fromkeys(("Q8_0", "Q4_0", "Q5_0"), (0,)),
    **dict.fromkeys(("Q4_1", "Q5_1", "Q4_K", "Q5_K"), (0, 2)),
    "Q6_K": (208,),
}
PLAIN = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}


def random_blocks(kind, rows, columns, seed=0):
    """Random bytes with sane scales, among them 0 and one that is subnormal in float16."""
    if kind in PLAIN:
        return Blocks(draw(rows, columns, dtype=PLAIN[kind], seed=seed).view(np.uint8), kind)
    rng = np.random.default_rng([seed, rows, columns])
    weights, size = LAYOUT[kind]
    data = rng.integers(0, 256, (rows, columns // weights, size), dtype=np.uint8)
    for at in SCALES[kind]:
        scale = rng.uniform(-0.01, 0.01, data.shape[:2]).astype(np.float16)
        scale.flat[1:3] = 0, 3e-7
        data[..., at : at + 2] = scale[..., None].view(np.uint8)
    return Blocks(data.reshape(rows, -1), kind)


def put_blocks(device, blocks):
    return Blocks(device.put(blocks.data), blocks.kind)
