"""Writing whole steps that lie in one block each, as an engine on a GPU hands them over."""

import errno
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from tensortrace.tracer import writer
from tensortrace.tracer.errors import TraceError
from tensortrace.tracer.format import Header, Step, TensorSpec, plan_steps
from tensortrace.tracer.packed import Places, lay_out, unpack
from tensortrace.tracer.trace import Trace
from tensortrace.tracer.writer import TraceWriter
from writing import LOGITS, PROBS, Q, values


class Block:
    """A step's block of an engine with fixed buffers, and whether it was given back."""

    def __init__(self, data: np.ndarray):
        self.data, self.nbytes, self.given_back = data, data.nbytes, threading.Event()

    @property
    def released(self) -> bool:
        return self.given_back.is_set()

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        assert not self.released
        return self.data

    def release(self) -> None:
        self.given_back.set()


def blocks_of(steps: list[Step], given_as: str) -> tuple[dict[int, Block], Places]:
    """Q and PROBS of decode steps, rows of PROBS as long as the longest."""
    last = steps[-1].kv_len
    shapes = {spec.key: (spec.shape(1, last), np.dtype(given_as)) for spec in (Q, LOGITS, PROBS)}
    places, size = lay_out(shapes)
    blocks = {step.index: Block(np.full(size, 0xFF, np.uint8)) for step in steps[1:]}
    for step in steps[1:]:
        for key, room in unpack(blocks[step.index].data, places):
            if key != LOGITS.key:
                array = values(Q if key == Q.key else PROBS, step)
                room[tuple(map(slice, array.shape))] = array
    return blocks, places


@pytest.mark.parametrize("given_as", ["float32", "float64"])
def test_steps_in_blocks(tmp_path: Path, given_as: str) -> None:
    """As a GPU's: of the stored type or another, with a tensor that is not wanted, and a step that is not."""
    steps = plan_steps(2, 7)
    blocks, places = blocks_of(steps, given_as)
    with TraceWriter(
        tmp_path / "a.h5", Header(engine="test"), [Q, PROBS], steps, recorded=[2, 3, 5, 6, 7]
    ) as w:
        for step in steps[1:]:
            w.write_packed(step.index, blocks[step.index], places)
            w.end_step(step.index)
        w.finish()
    assert all(block.released for block in blocks.values())
    with Trace(tmp_path / "a.h5") as trace:
        assert trace.complete
        assert not list(trace.damaged())
        assert [trace.has(Q.key, step.index) for step in steps] == [
            False,
            True,
            True,
            False,
            True,
            True,
            True,
        ]
        for step in steps:
            for spec in (Q, PROBS):
                if trace.has(spec.key, step.index):
                    found = trace.read(spec.key, step.index)
                    assert found.dtype == np.float32
                    assert np.array_equal(found, values(spec, step), equal_nan=True)


def test_blocks_of_another_size_are_refused_and_given_back(tmp_path: Path) -> None:
    steps = plan_steps(2, 3)
    blocks, places = blocks_of(steps, "float32")
    wider = TensorSpec(Q.key, Q.axes, {"head": 2, "dim": 4})

    def run() -> None:
        with TraceWriter(tmp_path / "a.h5", Header(engine="test"), [wider], steps) as writer:
            for step in steps[1:]:
                writer.write_packed(step.index, blocks[step.index], places)

    with pytest.raises(TraceError, match="L00 q: 24 bytes a step, announced as 32"):
        run()
    assert all(block.released for block in blocks.values())


def test_a_large_block_is_written_before_its_step_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU whose buffers are all in it cannot end the step before it has one back."""
    monkeypatch.setattr(writer, "FLUSH_BYTES", 1)
    steps = plan_steps(2, 4)
    blocks, places = blocks_of(steps, "float32")
    with TraceWriter(tmp_path / "a.h5", Header(engine="test"), [Q, PROBS], steps) as trace_writer:
        for step in steps[1:]:
            trace_writer.write_packed(step.index, blocks[step.index], places)
            assert blocks[step.index].given_back.wait(10)
            trace_writer.end_step(step.index)
        trace_writer.finish()
    with Trace(tmp_path / "a.h5") as trace:
        assert trace.complete
        assert [trace.has(PROBS.key, step.index) for step in steps] == [False, True, True, True]


@pytest.mark.usefixtures("written_by_python")
def test_blocks_are_given_back_where_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that were written, those on their way, and those that were only gathered."""
    steps = plan_steps(2, 6)
    blocks, places = blocks_of(steps, "float32")

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def run() -> None:
        with TraceWriter(tmp_path / "a.h5", Header(engine="test"), [Q, PROBS], steps) as trace_writer:
            monkeypatch.setattr(os, "pwritev", full)
            trace_writer.write_tokens(0, [1, 2])
            for step in steps[1:]:
                trace_writer.write_packed(step.index, blocks[step.index], places)

    with pytest.raises(TraceError, match="the disk is full"):
        run()
    assert all(block.released for block in blocks.values())
