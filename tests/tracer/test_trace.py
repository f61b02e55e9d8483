"""Reading traces: with our reader, with stock tools, and what is no trace."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from recording import record_trace
from tensortrace.tracer.errors import TraceError
from tensortrace.tracer.format import numpy_dtype
from tensortrace.tracer.gguf import Model
from tensortrace.tracer.names import Key
from tensortrace.tracer.trace import Trace

Recorder = Callable[..., Trace]


def test_what_a_trace_says_of_its_run(record_tiny: Recorder, tiny: Path) -> None:
    ids = [84, 104, 101, 32]
    trace = record_tiny(ids, n_new=3, piece=lambda token: b"<%d>" % token)
    assert (trace.header.engine, trace.header.architecture) == ("cpu", "llama")
    assert trace.header.settings == {"softmax": "online", "tile": 128, "chunk": None}
    assert trace.complete
    assert trace.prompt_ids.tolist() == ids
    assert trace.n_tokens == 6
    assert trace.tokens.tolist() == [*ids, *trace.generated[:2]]
    assert trace.pieces == [b"<%d>" % token for token in trace.tokens]
    assert len(trace.generated) == 3
    assert Key(0, "q") in trace
    assert Key(7, "q") not in trace


def test_reading_tensors(record_tiny: Recorder) -> None:
    trace = record_tiny([1, 2, 3, 4, 5], n_new=3, chunk=3, tile=2)
    assert trace.read(Key(0, "q"), 0).shape == (3, 4, 16)
    assert trace.read(Key(0, "q"), 3).shape == (1, 4, 16)
    assert trace.read(Key(1, "probs"), 1).shape == (4, 2, 5)
    assert trace.read(Key(1, "probs"), 2).shape == (4, 1, 6)
    assert trace.read(Key(1, "m_tiles"), 3).shape == (4, 4, 1)
    joined = np.concatenate([trace.read(Key(0, "k_rope"), step) for step in range(3)])
    assert np.array_equal(trace.rows_until(Key(0, "k_rope"), 2), joined)
    assert trace.rows(2).tolist() == [5]
    with pytest.raises(ValueError, match="read-only"):
        trace.read(Key(0, "q"), 0)[...] = 0


def test_what_was_not_recorded_is_said(record_tiny: Recorder) -> None:
    trace = record_tiny()
    for ask in (lambda: trace.read(Key(5, "q"), 0), lambda: trace.rows_until(Key(None, "nothing"), 0)):
        with pytest.raises(TraceError, match="has no tensor"):
            ask()
    with pytest.raises(TraceError, match="no token axis"):
        trace.rows_until(Key(0, "probs"), 0)


@pytest.mark.parametrize("storage", ["float32", "float16", "bfloat16"])
def test_plain_h5py_reads_it(record_tiny: Recorder, storage: str) -> None:
    trace = record_tiny([1, 2, 3, 4], n_new=3, storage=storage)
    with h5py.File(trace.path) as file:
        whole = trace.rows_until(Key(0, "q"), 2).astype(np.float32)
        assert np.array_equal(file["layers/00/q"][()], whole)
        assert file["layers/00/q"].attrs["axes"] == b"token,head,dim"
        assert [axis.label for axis in file["layers/00/q"].dims] == ["token", "head", "dim"]
        assert [axis.label for axis in file["layers/01/probs/decode"].dims] == [
            "step",
            "head",
            "query",
            "key",
        ]
        assert file["layers/00/q_rope"].attrs["op"] == b"rope"
        assert json.loads(file["layers/00/q_rope"].attrs["conventions"])["pairing"] == "interleaved"
        assert file.attrs["format"] == b"tensortrace"
        assert np.array_equal(file["tokens"][()], trace.tokens)


def test_the_noted_places_are_those_that_hdf5_tells(record_tiny: Recorder) -> None:
    trace = record_tiny([1, 2, 3, 4], n_new=3, chunk=2, storage="bfloat16")
    assert len(trace._places) > len(trace.tensors)
    with h5py.File(trace.path) as file:
        for path, offset in trace._places.items():
            assert offset == file[path].id.get_offset()
        names: list[str] = []
        file.visit(names.append)
        kinds = {f"/{name}": file[name].dtype.kind for name in names if isinstance(file[name], h5py.Dataset)}
    assert {path for path, kind in kinds.items() if kind == "f"} == set(trace._places)


def _swapped(file: h5py.File) -> None:
    file.move("layers/00/gate", "kept")
    file.move("layers/00/up", "layers/00/gate")
    file.move("kept", "layers/00/up")


def _replaced(file: h5py.File) -> None:
    values = file["layers/00/up"][()]
    del file["layers/00/gate"]
    file["layers/00/gate"] = values


@pytest.mark.parametrize("change", [_swapped, _replaced])
def test_places_of_a_changed_file_are_asked_of_hdf5(
    record_tiny: Recorder, change: Callable[[h5py.File], None]
) -> None:
    """Another tool has given a dataset another name, or other bytes: what was noted counts no more."""
    with record_tiny(n_new=1) as trace:
        up = trace.read(Key(0, "up"), 0).copy()
    with h5py.File(trace.path, "r+") as file:
        change(file)
    with Trace(trace.path) as changed:
        assert np.array_equal(changed.read(Key(0, "gate"), 0), up)


def test_a_damaged_note_is_not_followed(record_tiny: Recorder, tmp_path: Path) -> None:
    trace = record_tiny(n_new=2)
    with h5py.File(trace.path) as file:
        begin = file["places"].id.get_offset()
    data = bytearray(trace.path.read_bytes())
    data[begin + 8] ^= 64
    (tmp_path / "damaged.h5").write_bytes(data)
    with Trace(tmp_path / "damaged.h5") as damaged:
        for key in trace.tensors:
            assert np.array_equal(damaged.read(key, 1), trace.read(key, 1), equal_nan=True)


@pytest.mark.skipif(
    shutil.which("h5dump") is None, reason="hdf5-tools is a system package, not ours to install"
)
def test_stock_command_line_tools_show_it(record_tiny: Recorder) -> None:
    def output(*command: str) -> str:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    trace = record_tiny([1, 2, 3, 4], n_new=2, storage="bfloat16")
    listing = output("h5ls", "-r", str(trace.path))
    assert "/layers/00/q             Dataset {5, 4, 16}" in listing
    dump = output("h5dump", "-d", "/layers/00/attn_norm", "-y", "-w", "1", str(trace.path))
    numbers = [
        float(line.strip(" ,")) for line in dump.split("DATA {")[1].split("}")[0].split("\n") if line.strip()
    ]
    assert np.allclose(
        numbers, trace.rows_until(Key(0, "attn_norm"), 1).astype(np.float32).ravel(), rtol=1e-4
    )


def test_old_hdf5_can_read_it(record_tiny: Recorder) -> None:
    """HDF5 1.8 knows superblocks up to version 2; ours has the earliest."""
    assert record_tiny().path.read_bytes()[8] == 0


def test_flipped_data_bits_are_found(record_tiny: Recorder) -> None:
    trace = record_tiny(n_new=3)
    with h5py.File(trace.path) as file:
        offset = file["layers/01/up"].id.get_offset()
    data = bytearray(trace.path.read_bytes())
    data[offset + 10] ^= 1
    trace.path.write_bytes(data)
    assert list(Trace(trace.path).damaged()) == [(0, Key(1, "up"))]


# ---- what is no trace, or a damaged one


def refused(path: Path) -> str:
    with pytest.raises(TraceError) as caught:
        Trace(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_missing_empty_folder_and_other_files(tmp_path: Path, tiny: Path) -> None:
    assert "no such file" in refused(tmp_path / "missing.h5")
    assert "folder" in refused(tmp_path)
    (tmp_path / "empty.h5").touch()
    assert "empty" in refused(tmp_path / "empty.h5")
    (tmp_path / "text.h5").write_text("not HDF5\n")
    assert "not an HDF5 file" in refused(tmp_path / "text.h5")
    assert "GGUF model" in refused(tiny)
    assert "not a regular file" in refused(Path("/dev/null"))


def test_hdf5_that_is_no_trace(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = np.arange(3)
    assert "not a trace" in refused(tmp_path / "other.h5")


@pytest.mark.parametrize(
    ("version", "says"), [("2.0", "reads up to 1.x: update"), ("x", "format version 'x'"), ("", "version ''")]
)
def test_versions(record_tiny: Recorder, version: str, says: str) -> None:
    path = record_tiny().path
    with h5py.File(path, "a") as file:
        file.attrs["format_version"] = version
    assert says in refused(path)


def test_a_newer_minor_version_is_read(record_tiny: Recorder) -> None:
    path = record_tiny().path
    with h5py.File(path, "a") as file:
        file.attrs["format_version"] = "1.99"
        file.attrs["novelty"] = "unknown"
        file["novelties"] = [1, 2]
    assert Trace(path).complete


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.999])
def test_truncated(record_tiny: Recorder, part: float) -> None:
    path = record_tiny(n_new=3).path
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    assert "truncated" in refused(path)


def change_catalog(path: Path, change: Callable[[list], object]) -> None:
    with h5py.File(path, "a") as file:
        catalog = json.loads(file["catalog"][()])
        change(catalog)
        del file["catalog"]
        file["catalog"] = json.dumps(catalog)


@pytest.mark.parametrize(
    "change",
    [
        lambda catalog: catalog.pop(),
        lambda catalog: catalog.append(catalog[0]),
        lambda catalog: catalog.__setitem__(0, "embd"),
        lambda catalog: catalog[0].pop("axes"),
        lambda catalog: catalog[0].update(key=[0, "a", "b"]),
        lambda catalog: catalog[0].update(dtype="object"),
        lambda catalog: catalog[0]["sizes"].update(dim=-64),
        lambda catalog: catalog[0]["sizes"].update(dim=2**62),
    ],
)
def test_a_catalog_that_cannot_be_true(record_tiny: Recorder, change: Callable[[list], object]) -> None:
    path = record_tiny().path
    change_catalog(path, change)
    assert "damaged trace" in refused(path)


@pytest.mark.parametrize(
    "lie",
    [{"sizes": {"dim": 2**39}}, {"sizes": {"dim": 32}}, {"dtype": "float16"}, {"key": [None, "elsewhere"]}],
    ids=str,
)
def test_a_catalog_that_lies_is_found_on_reading(record_tiny: Recorder, lie: dict) -> None:
    path = record_tiny().path
    change_catalog(path, lambda catalog: catalog[0].update(lie))
    trace = Trace(path)
    with pytest.raises(TraceError, match="damaged trace") as caught:
        trace.read(next(iter(trace.tensors)), 0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("dataset", "value"),
    [
        ("steps/start", [-1]),
        ("steps/n_tokens", [2**62]),
        ("steps/phase", [b"\xff"]),
        ("steps/flushed", [1, 1]),
        ("steps/checksums", [[1]]),
        ("recorded_tokens", [[3], [2]]),
        ("tokens", [1]),
        ("complete", np.zeros(0)),
        ("catalog", "not JSON"),
        ("catalog", "[" * 100_000),
        ("generated", None),
        ("steps", None),
    ],
    ids=str,
)
def test_tables_that_cannot_be_true(record_tiny: Recorder, dataset: str, value: object) -> None:
    path = record_tiny().path
    with h5py.File(path, "a") as file:
        del file[dataset]
        if value is not None:
            file[dataset] = value
    refused(path)


def test_every_stored_type_comes_back_as_itself(tiny_model: Model, tmp_path: Path) -> None:
    for storage in ("float16", "bfloat16", "float8_e4m3fn", "float64"):
        record_trace(tiny_model, tmp_path / "a.h5", [1, 2, 3], storage=storage)
        with Trace(tmp_path / "a.h5") as trace:
            assert trace.read(Key(0, "q"), 0).dtype == numpy_dtype(storage)
            assert trace.header.storage_dtype == storage
