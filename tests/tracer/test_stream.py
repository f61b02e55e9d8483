"""The raw stream: what is written comes back, and of a damaged file just what is whole."""

import struct
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensortrace.tracer.errors import UserError
from tensortrace.tracer.stream import StreamStep, StreamWriter, read_stream

ARRAYS = (
    np.arange(6, dtype=np.float32).reshape(2, 3),
    np.arange(4, dtype=np.float16),
    np.array([[1.5, -2.25]], ml_dtypes.bfloat16),
    np.arange(40, dtype=np.int64).reshape(2, 4, 5),
    np.full(1, 3.5),
    np.arange(24, dtype=np.uint8).reshape(4, 6)[:, ::2],
)


def write(path: Path) -> Path:
    with StreamWriter(path, {"engine": "mine", "note": "two\nlines"}) as stream:
        stream.step(0, [7, 8, 9], 0)
        for index, array in enumerate(ARRAYS):
            stream.tensor(0, f"t{index}", array, layer=index or None, axes=("a",) * array.ndim, source="x")
        stream.step(1, [3])
    return path


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    stream = read_stream(write(tmp_path / "a.ttr"))
    assert stream.complete
    assert stream.meta == {"engine": "mine", "note": "two lines"}
    assert stream.steps == [StreamStep(0, 0, (7, 8, 9)), StreamStep(1, None, (3,))]
    assert [tensor.layer for tensor in stream.tensors] == [None, 1, 2, 3, 4, 5]
    for tensor, array in zip(stream.tensors, ARRAYS, strict=True):
        loaded = stream.load(tensor)
        assert loaded.dtype == array.dtype
        assert np.array_equal(loaded, array)


def test_a_cut_leaves_the_records_in_front_of_it(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.ttr").read_bytes()
    tensors = read_stream(tmp_path / "a.ttr").tensors
    cut = tmp_path / "cut.ttr"
    for size in range(8, len(whole)):
        cut.write_bytes(whole[:size])
        stream = read_stream(cut)
        assert not stream.complete
        kept = len(stream.tensors)
        assert stream.tensors == [t.__class__(**vars(t)) for t in tensors[:kept]]
        assert all(tensor.offset <= size for tensor in stream.tensors)


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    whole = bytearray(write(tmp_path / "a.ttr").read_bytes())
    tensors = read_stream(tmp_path / "a.ttr").tensors
    flipped = tmp_path / "flipped.ttr"
    zeros = {position for position in range(8, len(whole)) if _is_unused(whole, position)}
    for position in set(range(8, len(whole))) - zeros:
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        flipped.write_bytes(damaged)
        stream = read_stream(flipped)
        assert "damaged" in stream.end or "cut off" in stream.end, position
        assert stream.tensors == tensors[: len(stream.tensors)]


def _is_unused(data: bytes, position: int) -> bool:
    """The four zero bytes behind a record's kind."""
    at = 8
    while at < len(data):
        if at + 4 <= position < at + 8:
            return True
        at += 24 + struct.unpack_from("<Q", data, at + 8)[0]
    return False


def test_other_files_are_named_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "x.ttr"
    for content, message in (
        (b"", "is empty"),
        (b"GGUF" + bytes(20), "is not a tensortrace stream"),
        (b"TTRS" + struct.pack("<HH", 2, 0), "update tensortrace"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=message):
            read_stream(path)


def test_an_existing_spool_is_not_overwritten(tmp_path: Path) -> None:
    write(tmp_path / "a.ttr")
    with pytest.raises(UserError, match="exists"):
        StreamWriter(tmp_path / "a.ttr", {})


def test_kinds_of_newer_versions_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "a.ttr"
    with StreamWriter(path, {}) as stream:
        stream._record(b"NEW!", b"something else")
        stream.tensor(0, "q", np.ones(3, np.float32))
    assert [tensor.name for tensor in read_stream(path).tensors] == ["q"]
    assert read_stream(path).complete


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300), st.integers(0, 3))
def test_any_body_is_read_or_called_damaged(
    tmp_path_factory: pytest.TempPathFactory, body: bytes, kind: int
) -> None:
    path = tmp_path_factory.mktemp("any") / "a.ttr"
    with StreamWriter(path, {}) as stream:
        stream._record((b"HEAD", b"STEP", b"TENS", b"END ")[kind], body)
    found = read_stream(path)
    for tensor in found.tensors:
        if 0 not in tensor.shape:
            found.load(tensor)
