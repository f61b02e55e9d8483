"""Rewriting traces: shortened or compressed, the numbers stay the same."""

import os
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from recording import record_trace
from tensortrace.tracer.errors import TraceError
from tensortrace.tracer.gguf import Model
from tensortrace.tracer.repack import compress, shorten
from tensortrace.tracer.selection import Selection
from tensortrace.tracer.trace import Trace

Recorder = Callable[..., Trace]


def equal(a: Trace, b: Trace) -> None:
    assert (a.header, a.tensors, a.complete) == (b.header, b.tensors, b.complete)
    assert a.tokens.tolist() == b.tokens.tolist()
    assert a.generated.tolist() == b.generated.tolist()
    assert a.pieces == b.pieces
    assert a.flushed == b.flushed
    for step in a.flushed:
        for key in a.tensors:
            assert a.has(key, step.index) == b.has(key, step.index)
            if a.has(key, step.index):
                assert a.read(key, step.index).tobytes() == b.read(key, step.index).tobytes(), (step, key)


@pytest.mark.parametrize("storage", ["float32", "bfloat16", "float8_e5m2"])
@pytest.mark.parametrize("stats_only", [False, True])
def test_compressed_holds_the_same(record_tiny: Recorder, storage: str, stats_only: bool) -> None:
    options = {"n_new": 4, "chunk": 6, "storage": storage, "stats_only": stats_only}
    plain, packed = record_tiny(**options), record_tiny(**options)
    compress(packed.path)
    packed = Trace(packed.path)
    plain.header.__dict__["created"] = packed.header.created  # the clock ran on between the two
    equal(plain, packed)
    assert list(packed.damaged()) == []


def test_compressed_is_smaller_and_says_the_same_to_h5py(record_tiny: Recorder) -> None:
    trace = record_tiny(list(range(200)), n_new=3, storage="bfloat16")
    before = trace.path.stat().st_size
    with h5py.File(trace.path) as file:
        attributes, up = dict(file["layers/00/up"].attrs), file["layers/00/up"][()]
    compress(trace.path)
    assert trace.path.stat().st_size < before
    with h5py.File(trace.path) as file:
        assert file["layers/00/up"].compression == "gzip"
        assert np.array_equal(file["layers/00/up"][()], up)
        for name, value in attributes.items():
            assert np.array_equal(file["layers/00/up"].attrs[name], value)


def test_compressing_needs_little_memory(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.h5"
    record_trace(tiny, path, [i % 300 for i in range(700)], selection=Selection(tensors="scores", layers="0"))
    sizes, whole = [], np.empty
    monkeypatch.setattr(np, "empty", lambda *a: (sizes.append(made := whole(*a)), made)[1])
    compress(path)
    assert 0 < max(array.nbytes for array in sizes) <= 2 << 20  # of 8 MB


@pytest.mark.parametrize("work", [lambda path: shorten(path, 1), compress], ids=["shorten", "compress"])
def test_a_failure_leaves_the_trace_as_it_was(
    record_tiny: Recorder, monkeypatch: pytest.MonkeyPatch, work: Callable[[Path], None]
) -> None:
    path = record_tiny(n_new=3).path
    before = path.read_bytes()

    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwritev", no_space)
    monkeypatch.setattr("tensortrace.tracer.repack._copy_rows", no_space)
    with pytest.raises(TraceError, match=r"disk is full|No space left"):
        work(path)
    assert path.read_bytes() == before
    assert list(path.parent.glob(".*")) == []


@pytest.mark.parametrize("tokens", [None, "1,3,11"])
def test_shortened_equals_a_shorter_run(
    tiny_model: Model, record_tiny: Recorder, tmp_path: Path, tokens: str | None
) -> None:
    selection = Selection(tokens=tokens)
    long, short = record_tiny(n_new=6, selection=selection), record_tiny(n_new=3, selection=selection)
    shorten(long.path, 3)
    shortened = Trace(long.path)
    shortened.header.__dict__.update(created=short.header.created, sampling=short.header.sampling)
    equal(shortened, short)
    with h5py.File(shortened.path) as a, h5py.File(short.path) as b:
        for name in ("layers/00/q", "layers/01/probs/decode", "tokens", "generated", "pieces"):
            if name in b:
                assert a[name].shape == b[name].shape
