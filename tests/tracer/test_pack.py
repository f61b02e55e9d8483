"""Decode steps in blocks, against arrays padded by NumPy."""

import threading

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensortrace.tracer.errors import TraceError
from tensortrace.tracer.format import TensorSpec, numpy_dtype, plan_steps
from tensortrace.tracer.layout import Layout
from tensortrace.tracer.names import Key
from tensortrace.tracer.pack import Block, Form, Pool
from tensortrace.tracer.packed import unpack

pytestmark = pytest.mark.usefixtures("both_kernel_sets")

AXES = {
    "q": (("token", "head", "dim"), {"head": 2, "dim": 3}),
    "probs": (("head", "query", "key"), {"head": 2}),
    "m_tiles": (("tile", "head", "query"), {"tile": 4, "head": 2}),
    "both": (("head", "tile", "query", "key"), {"tile": 4, "head": 2}),  # shorter along two axes
    "angles": (("axis0", "axis1"), {"axis0": 5, "axis1": 2}),
    "many": (("token", *(f"axis{i}" for i in range(9))), {f"axis{i}": 1 + i % 2 for i in range(9)}),
}
TYPES = ("float32", "float64", "float16", "bfloat16", "int32", "uint8")
STEPS = plan_steps(5, 8)
LAYOUT = Layout(STEPS, np.arange(12))


def padded(array: np.ndarray, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    made = np.full(shape, 0 if dtype.kind in "iu" else np.nan, dtype)
    made[tuple(map(slice, array.shape))] = array
    return made


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.sampled_from([*AXES]), st.sampled_from(TYPES), st.sampled_from(TYPES)), min_size=1),
    st.permutations(range(1, 8)),
    st.booleans(),
)
def test_a_block_holds_every_array(kinds: list[tuple[str, str, str]], order: list[int], turned: bool) -> None:
    """Steps in any order, so that memory used before held rows that were longer."""
    specs = [TensorSpec(Key(i, name), *AXES[name], dtype) for i, (name, dtype, _) in enumerate(kinds)]
    form, random = Form([spec.key for spec in specs], specs, LAYOUT), np.random.default_rng(len(kinds))
    for step in order:
        arrays = []
        for spec, (_, _, given_as) in zip(specs, kinds):
            shape = spec.shape(1, STEPS[step].kv_len)
            array = random.integers(0, 99, shape[::-1] if turned else shape).astype(numpy_dtype(given_as))
            arrays.append(array.T if turned else array)
        block = form.pack(step, arrays)
        for (key, found), spec, array in zip(unpack(np.asarray(block), form.places), specs, arrays):
            expected = padded(array, spec.shape(1, LAYOUT.n_tokens), numpy_dtype(spec.dtype))
            assert key == spec.key
            assert found.dtype == expected.dtype
            assert np.array_equal(found.astype(np.float64), expected.astype(np.float64), equal_nan=True)
        block.release()


def test_what_float16_cannot_hold_is_infinite() -> None:
    spec = TensorSpec(Key(0, "q"), *AXES["q"], "float16")
    block = Form([spec.key], [spec], LAYOUT).pack(1, [np.full((1, 2, 3), 1e9, np.float32)])
    assert np.isposinf(np.asarray(block)[:12].view(np.float16)).all()


@pytest.mark.parametrize("given_as", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(2, 1, 5), (2, 1, 13), (2, 6), (1, 2, 1, 6), (2, 1, 6, 1)])
def test_another_shape_is_refused(shape: tuple[int, ...], given_as: str) -> None:
    spec = TensorSpec(Key(3, "probs"), *AXES["probs"])
    with pytest.raises(TraceError, match=r"L03 probs: recorded as .*, announced as \(2, 1, 6\)"):
        Form([spec.key], [spec], LAYOUT).pack(1, [np.zeros(shape, given_as)])


def test_a_block_is_used_again_once_it_was_released() -> None:
    spec = TensorSpec(Key(0, "q"), *AXES["q"])
    form, array = Form([spec.key], [spec], LAYOUT), np.ones((1, 2, 3), np.float32)

    def address(block: Block) -> int:
        return np.asarray(block).ctypes.data

    first, second = form.pack(1, [array]), form.pack(2, [array])
    free = address(first)
    first.release()
    first.release()
    third, fourth = form.pack(3, [array]), form.pack(4, [array])
    assert address(third) == free
    assert len({address(block) for block in (second, third, fourth)}) == 3


def test_waiting_for_blocks() -> None:
    """Until no more are in use than fit; two may always be."""
    pool = Pool(1000)
    blocks = [pool.take() for _ in range(5)]
    pool.wait_for_all_but(5000)
    waited: list[int] = []

    def wait() -> None:
        for nbytes in (4999, 3500, 1):
            pool.wait_for_all_but(nbytes)
            waited.append(nbytes)

    thread = threading.Thread(target=wait)
    thread.start()
    for so_far in ([], [4999], [4999, 3500]):
        thread.join(0.05)
        assert waited == so_far
        pool.give_back(blocks.pop())
    thread.join(10)
    assert waited == [4999, 3500, 1]
