"""Writing traces: whatever is written is read back, and whatever goes wrong is said."""

import errno
import itertools
import os
import shutil
import threading
from collections import namedtuple
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensortrace.tracer import writer
from tensortrace.tracer.errors import TraceError
from tensortrace.tracer.format import Header, TensorSpec, numpy_dtype, plan_steps
from tensortrace.tracer.names import Key
from tensortrace.tracer.trace import Trace
from tensortrace.tracer.writer import TraceWriter
from writing import COUNTS, IDS, LOGITS, PROBS, SPECS, TILES, Q, values, write

STORED = [
    "float16",
    "float32",
    "float64",
    "bfloat16",
    "float8_e4m3fn",
    "float8_e5m2",
    "int8",
    "int32",
    "uint32",
]


def rows_of(array: np.ndarray, spec: TensorSpec, rows: np.ndarray) -> np.ndarray:
    return np.take(array, rows, spec.axes.index("token" if "token" in spec.axes else "query"))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 9), st.integers(1, 5), st.none() | st.integers(1, 4), st.sampled_from(STORED), st.data()
)
def test_round_trip(tmp_path_factory, prompt: int, new: int, chunk: int | None, dtype: str, data) -> None:
    steps = plan_steps(prompt, new, chunk)
    tokens = data.draw(st.none() | st.sets(st.integers(0, steps[-1].kv_len - 1)))
    recorded = None if tokens is None else sorted(tokens)
    floating = dtype if "float" in dtype else "float32"
    specs = [
        TensorSpec(Q.key, Q.axes, Q.sizes, dtype),
        TensorSpec(PROBS.key, PROBS.axes, PROBS.sizes, floating),
        TensorSpec(TILES.key, TILES.axes, TILES.sizes, floating),
        COUNTS,
        IDS,
    ]
    path = tmp_path_factory.getbasetemp() / "round_trip.h5"
    write(path, specs, steps, recorded)
    with Trace(path) as trace:
        assert trace.complete
        assert trace.flushed == steps
        assert list(trace.tensors.values()) == specs
        assert list(trace.damaged()) == []
        for step in steps:
            kept = trace.rows(step.index)
            assert kept.tolist() == [
                t for t in range(step.start, step.kv_len) if tokens is None or t in tokens
            ]
            for spec in specs:
                assert trace.has(spec.key, step.index) == bool(len(kept))
                if len(kept):
                    expected = rows_of(values(spec, step), spec, kept - step.start)
                    assert trace.read(spec.key, step.index).dtype == numpy_dtype(spec.dtype)
                    assert trace.read(spec.key, step.index).tobytes() == expected.tobytes()


@pytest.mark.parametrize("lacking", [{2}, {1, 3}, {2, 4, 5}])
def test_decode_steps_that_lack_a_tensor(tmp_path: Path, lacking: set[int]) -> None:
    """Some are gathered and written together; what lies between two of them is not theirs."""
    steps = plan_steps(2, 7)
    with TraceWriter(tmp_path / "a.h5", Header(engine="test"), [Q, PROBS], steps) as writer:
        for step in steps:
            for spec in (Q, PROBS):
                if spec is PROBS or step.index not in lacking:
                    writer.write(step.index, spec.key, values(spec, step))
            writer.end_step(step.index)
        writer.finish()
    with Trace(tmp_path / "a.h5") as trace:
        assert list(trace.damaged()) == []
        for step in steps:
            assert trace.has(Q.key, step.index) == (step.index not in lacking)
            for spec in (Q, PROBS):
                if trace.has(spec.key, step.index):
                    assert trace.read(spec.key, step.index).tobytes() == values(spec, step).tobytes()


def test_tensors_without_rows_are_kept_whole(tmp_path: Path) -> None:
    """Such as a table of angles: there is nothing to choose tokens of."""
    table = TensorSpec(Key(None, "angles"), ("axis0", "axis1"), {"axis0": 5, "axis1": 2})
    steps = plan_steps(6, 1)
    array = np.arange(10, dtype=np.float32).reshape(5, 2)
    with TraceWriter(tmp_path / "a.h5", Header(engine="test"), [table], steps, recorded=[2, 3]) as writer:
        writer.write(0, table.key, array)
        writer.end_step(0)
        writer.finish()
    with Trace(tmp_path / "a.h5") as trace:
        assert np.array_equal(trace.read(table.key, 0), array)


def test_values_are_converted_to_the_stored_type(tmp_path: Path) -> None:
    spec = TensorSpec(Q.key, Q.axes, Q.sizes, "bfloat16")
    exact = np.linspace(-3, 3, 24, dtype=np.float32).reshape(4, 2, 3)
    with TraceWriter(tmp_path / "a.h5", Header(engine="test"), [spec], plan_steps(4, 1)) as writer:
        writer.write(0, spec.key, exact)
        writer.end_step(0)
        writer.finish()
    stored = Trace(tmp_path / "a.h5").read(spec.key, 0)
    assert np.array_equal(stored.view(np.uint16), exact.astype(numpy_dtype("bfloat16")).view(np.uint16))


def test_padding_of_decode_steps_is_nan_and_counts_are_exact(tmp_path: Path) -> None:
    import h5py

    write(tmp_path / "a.h5", SPECS, plan_steps(3, 4))
    with h5py.File(tmp_path / "a.h5") as file:
        block = file["layers/01/probs/decode"][()]
        assert block.shape == (3, 2, 1, 6)
        assert [np.isnan(block[i, :, :, 4 + i :]).all() for i in range(3)] == [True] * 3
        assert file["layers/01/probs.hist/decode"].shape == (3, 2, 1, 5)


def test_a_tensor_that_is_not_in_the_catalog_is_left_out(tmp_path: Path) -> None:
    steps = plan_steps(3, 1)
    with TraceWriter(tmp_path / "a.h5", Header(engine="test"), [Q], steps) as writer:
        writer.write(0, LOGITS.key, values(LOGITS, steps[0]))
        writer.finish()
    assert not Trace(tmp_path / "a.h5").has(Q.key, 0)


def test_header_tokens_and_texts(tmp_path: Path) -> None:
    prompt = "a\0b \x1b[31m[bold] 𝄞 " + "long " * 40_000
    header = Header(engine="test", prompt=prompt, hyperparameters={"llama.block_count": 2})
    with TraceWriter(tmp_path / "a.h5", header, [Q], plan_steps(3, 3)) as writer:
        writer.write_tokens(0, [5, 6, 7], [b"a", b"\xff\xfe", b"x" * 50])
        writer.write_generated(0, 8)
        for step in range(3):
            writer.end_step(step)
        writer.finish()
    trace = Trace(tmp_path / "a.h5")
    assert trace.header == header
    assert trace.tokens.tolist() == [5, 6, 7, 0, 0]
    assert trace.pieces[:3] == [b"a", b"\xff\xfe", b"x" * 32]
    assert trace.prompt_ids.tolist() == [5, 6, 7]
    assert trace.generated.tolist() == [8, 0, 0]


# ---- what goes wrong


def test_a_wrong_shape_is_said_and_nothing_hangs(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path / "a.h5", Header(engine="test"), [Q], plan_steps(3, 1), buffer_bytes=64)

    def run() -> None:
        with writer:
            for _ in range(100):
                writer.write(0, Q.key, np.zeros((3, 2, 4), np.float32))

    with pytest.raises(TraceError, match=r"L00 q: recorded as \(3, 2, 4\), announced as \(3, 2, 3\)"):
        run()
    assert not Trace(tmp_path / "a.h5").complete


def test_a_wrong_shape_in_a_decode_step_is_said_and_the_steps_before_are_kept(tmp_path: Path) -> None:
    steps = plan_steps(3, 4)

    def run() -> None:
        with TraceWriter(tmp_path / "a.h5", Header(engine="test"), [Q], steps) as writer:
            for step, width in zip(steps, (3, 3, 4, 3)):
                writer.write(step.index, Q.key, np.zeros((step.n_tokens, 2, width), np.float32))
                writer.end_step(step.index)

    with pytest.raises(TraceError, match=r"L00 q: recorded as \(1, 2, 4\), announced as \(1, 2, 3\)"):
        run()
    assert [Trace(tmp_path / "a.h5").has(Q.key, step.index) for step in steps] == [True, True, False, False]


def test_whoever_goes_on_after_a_wrong_shape_is_told_again(tmp_path: Path) -> None:
    """What lacks a tensor must not count as whole."""
    steps = plan_steps(3, 4)
    writer = TraceWriter(tmp_path / "a.h5", Header(engine="test"), [Q], steps)
    for step, width in zip(steps, (3, 3, 4, 3)):
        writer.write(step.index, Q.key, np.zeros((step.n_tokens, 2, width), np.float32))
        with suppress(TraceError):
            writer.end_step(step.index)
    for call in (writer.finish, writer.close):
        with pytest.raises(TraceError, match="L00 q: recorded as"):
            call()
    trace = Trace(tmp_path / "a.h5")
    assert not trace.complete
    assert trace.flushed == steps[:2]


def test_a_wrong_shape_of_a_step_that_was_interrupted_hides_nothing(tmp_path: Path) -> None:
    """The steps before are whole, the first error is the one shown, and nothing stays open."""
    steps, threads = plan_steps(3, 6), threading.active_count()

    def run() -> None:
        with TraceWriter(tmp_path / "a.h5", Header(engine="test"), [Q], steps) as writer:
            for step in steps[:4]:
                writer.write(step.index, Q.key, values(Q, step))
                writer.end_step(step.index)
            writer.write(4, Q.key, np.zeros((1, 2, 4), np.float32))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    assert Trace(tmp_path / "a.h5").flushed == steps[:4]
    assert threading.active_count() == threads


def test_steps_that_are_larger_than_the_buffer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of a large model: two of them may be in memory, whatever else the limits say."""
    monkeypatch.setattr(writer, "FLUSH_BYTES", 1)
    monkeypatch.setattr(writer, "WAITING_BYTES", 1)
    steps = plan_steps(3, 40)
    write(tmp_path / "a.h5", SPECS, steps, buffer_bytes=1)
    with Trace(tmp_path / "a.h5") as trace:
        assert trace.flushed == steps
        assert not list(trace.damaged())


def test_an_error_of_the_writer_thread_reaches_the_caller(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="could not convert"),
        TraceWriter(tmp_path / "a.h5", Header(engine="test"), [Q], plan_steps(3, 1)) as writer,
    ):
        writer.write(0, Q.key, np.full((3, 2, 3), "text"))


def test_without_finish_the_trace_is_incomplete(tmp_path: Path) -> None:
    steps = plan_steps(3, 3)
    with TraceWriter(tmp_path / "a.h5", Header(engine="test"), [Q], steps) as writer:
        writer.write(0, Q.key, values(Q, steps[0]))
        writer.end_step(0)
    trace = Trace(tmp_path / "a.h5")
    assert not trace.complete
    assert trace.flushed == steps[:1]
    assert trace.has(Q.key, 0)
    assert not trace.has(Q.key, 1)


def test_an_exception_in_the_run_passes_and_keeps_what_was_written(tmp_path: Path) -> None:
    steps = plan_steps(3, 3)

    def run() -> None:
        with TraceWriter(tmp_path / "a.h5", Header(engine="test"), [Q], steps) as writer:
            writer.write(0, Q.key, values(Q, steps[0]))
            writer.end_step(0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    assert Trace(tmp_path / "a.h5").flushed == steps[:1]


@pytest.mark.usefixtures("written_by_python")
def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writes end inside a row, or after some rows."""
    whole, turn = os.pwritev, itertools.cycle((1, 2, 3))

    def some(fd: int, rows: list[memoryview], at: int) -> int:
        first = rows[0][: max(1, len(rows[0]) // 3)]
        return whole(fd, [first] if next(turn) < 3 else [*rows[:2]], at)

    monkeypatch.setattr(os, "pwritev", some)
    write(tmp_path / "a.h5", SPECS, plan_steps(5, 9))
    monkeypatch.undo()
    with Trace(tmp_path / "a.h5") as trace:
        assert trace.complete
        assert not list(trace.damaged())


@pytest.mark.usefixtures("written_by_python")
@pytest.mark.parametrize("fault", ["returns nothing", "no space"])
def test_a_full_disk_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    steps, left, whole = plan_steps(5, 6), 2000, os.pwritev

    def pwritev(fd: int, rows: list[memoryview], at: int) -> int:
        nonlocal left
        room = left // 8 * 8  # a disk fills up by blocks: no number is cut in two
        if not room:
            if fault == "no space":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return 0
        written = whole(fd, [rows[0][:room]], at)
        left -= written
        return written

    monkeypatch.setattr(os, "pwritev", pwritev)
    with pytest.raises(TraceError, match=r"the disk is full; the (\d) of 6 steps written so far") as caught:
        write(tmp_path / "a.h5", SPECS, steps)
    assert "\n" not in str(caught.value)
    with Trace(tmp_path / "a.h5") as trace:
        assert not trace.complete
        assert f"the {len(trace.flushed)} of 6 steps" in str(caught.value)
        assert not list(trace.damaged())


def test_a_trace_that_will_not_fit_is_refused_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 0, 1000))
    with pytest.raises(TraceError, match=r"needs 0\.\d\d GB and .* has 0\.00 GB free: record fewer"):
        TraceWriter(tmp_path / "a.h5", Header(engine="test"), SPECS, plan_steps(5, 3))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["missing/a.h5", "file/a.h5"])
def test_a_place_that_cannot_be_written(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TraceError, match="cannot write"):
        TraceWriter(tmp_path / place, Header(engine="test"), [Q], plan_steps(3, 1))


def test_an_older_trace_stays_until_the_new_one_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.h5"
    write(path, [Q], plan_steps(3, 1))
    before = path.read_bytes()
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 0, 0))
    with pytest.raises(TraceError):
        write(path, SPECS, plan_steps(5, 1))
    assert path.read_bytes() == before


def test_the_buffer_holds_back_a_fast_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than the buffer (and one array) is in memory while the disk is slow."""
    steps, gate, whole = plan_steps(20_000, 1), threading.Event(), os.pwritev
    monkeypatch.setattr(os, "pwritev", lambda *a: (gate.wait(10), whole(*a))[1])
    specs = [TensorSpec(Key(i, "q"), Q.axes, Q.sizes) for i in range(20)]
    handed = []
    size = values(specs[0], steps[0]).nbytes

    def run() -> None:
        with TraceWriter(
            tmp_path / "a.h5", Header(engine="test"), specs, steps, buffer_bytes=3 * size
        ) as writer:
            for spec in specs:
                writer.write(0, spec.key, values(spec, steps[0]))
                handed.append(spec)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(0.5)
    assert len(handed) == 3
    gate.set()
    thread.join()
    assert len(handed) == 20
