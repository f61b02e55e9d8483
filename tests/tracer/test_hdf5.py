"""The structure that we lay out, as HDF5's own library reads it and as it makes it itself."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensortrace.tracer import hdf5
from tensortrace.tracer.format import h5_type
from tensortrace.tracer.hdf5 import Dataset, lay_out

TYPES = ("float32", "float64", "bfloat16", "float8_e4m3fn", "int64", "uint8", "S8")
names = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=9).filter(
    lambda name: name.strip(".")
)


@st.composite
def datasets(draw: st.DrawFn) -> Dataset:
    shape = tuple(draw(st.lists(st.integers(0, 5), max_size=3)))
    texts = st.dictionaries(st.sampled_from(["axes", "op", "a" * 300]), st.text(st.characters(codec="utf-8")))
    labels = ("token", "κεφαλή", "dim")[: len(shape)] if draw(st.booleans()) else ()
    return Dataset(h5_type(draw(st.sampled_from(TYPES))).encode()[2:], shape, draw(texts), labels)


def write(path: Path, found: dict[str, Dataset], texts: dict[str, str], alignment: int = 64) -> hdf5.Laid:
    """The file that is laid out; the bytes of each dataset are its number."""
    laid = lay_out(found, texts, alignment)
    with path.open("wb") as file:
        file.write(laid.structure)
        for number, (name, dataset) in enumerate(found.items(), start=1):
            file.seek(laid.offsets[name])
            file.write(bytes([number % 256]) * dataset.nbytes)
        file.truncate(laid.size)
    return laid


def written_by_hdf5(path: Path, found: dict[str, Dataset], texts: dict[str, str]) -> None:
    """The same file by the library."""
    with h5py.File(path, "w", libver=("earliest", "v108")) as file:
        _set(file, texts)
        for name, dataset in found.items():
            kind = h5py.h5t.decode(b"\x03\x00" + dataset.kind)
            space = (
                h5py.h5s.create_simple(dataset.shape) if dataset.shape else h5py.h5s.create(h5py.h5s.SCALAR)
            )
            links = h5py.h5p.create(h5py.h5p.LINK_CREATE)
            links.set_create_intermediate_group(True)
            h5py.h5d.create(file.id, name.encode(), kind, space, lcpl=links)
            _set(file[name], dataset.texts)
            if dataset.labels:
                labels = np.array(dataset.labels, object)
                file[name].attrs.create("DIMENSION_LABELS", labels, dtype=h5py.string_dtype())


def _set(item: h5py.HLObject, texts: Any) -> None:
    for name, text in texts.items():
        data = text.encode()
        item.attrs.create(name, np.array(data, h5py.string_dtype("utf-8", max(len(data), 1))))


def content(path: Path) -> dict[str, Any]:
    """All that a reader can see: every group and dataset with its types, shapes, attributes and labels."""
    found: dict[str, Any] = {}

    def visit(name: str, item: h5py.HLObject) -> None:
        attributes = {
            key: (np.asarray(item.attrs[key]).tolist(), item.attrs.get_id(key).get_type().encode())
            for key in item.attrs
        }
        found[name] = (attributes,)
        if isinstance(item, h5py.Dataset):
            kind, labels = item.id.get_type().encode(), [axis.label for axis in item.dims]
            found[name] += (item.shape, item.maxshape, kind, item.chunks, labels)

    with h5py.File(path) as file:
        visit("/", file)
        file.visititems(visit)
    return found


@given(st.dictionaries(st.lists(names, min_size=1, max_size=3).map("/".join), datasets(), max_size=8))
def test_what_the_library_makes_and_reads(tmp_path_factory: Any, found: dict[str, Dataset]) -> None:
    ours, theirs = (tmp_path_factory.getbasetemp() / name for name in ("ours.h5", "theirs.h5"))
    texts = {"format": "π", "empty": ""}
    try:
        laid = write(ours, found, texts)
    except ValueError:  # a dataset is a group as well
        with pytest.raises((ValueError, RuntimeError, OSError)):
            written_by_hdf5(theirs, found, texts)
        return
    written_by_hdf5(theirs, found, texts)
    assert content(ours) == content(theirs)
    with h5py.File(ours) as file:
        assert file.id.get_filesize() == laid.size or not any(d.nbytes for d in found.values())
        for number, (name, dataset) in enumerate(found.items(), start=1):
            assert laid.offsets[name] % 64 == 0
            assert (file[name].id.get_offset() or 0) == laid.offsets[name]
            raw = np.zeros(dataset.shape, f"V{dataset.itemsize}")
            if raw.size:
                file[name].id.read(h5py.h5s.ALL, h5py.h5s.ALL, raw, file[name].id.get_type())
            assert raw.tobytes() == bytes([number % 256]) * dataset.nbytes


def trace_like(layers: int, tensors: int) -> dict[str, Dataset]:
    kind = h5_type("float32").encode()[2:]
    axes = ("token", "head", "dim")
    return {
        f"/layers/{layer:03}/t{tensor}": Dataset(kind, (3, 2, 4), {"op": f"op{tensor}"}, axes)
        for layer in range(layers)
        for tensor in range(tensors)
    }


@pytest.mark.parametrize(("layers", "tensors"), [(1, 1), (3, 8), (3, 9), (300, 20), (1, 2000)])
def test_groups_and_labels_of_every_size(tmp_path: Path, layers: int, tensors: int) -> None:
    """A node of links that is just full, several nodes, more nodes than a group has by default; two heaps."""
    found = trace_like(layers, tensors)
    write(tmp_path / "ours.h5", found, {})
    written_by_hdf5(tmp_path / "theirs.h5", found, {})
    assert content(tmp_path / "ours.h5") == content(tmp_path / "theirs.h5")


def test_another_tool_may_change_the_file(tmp_path: Path) -> None:
    """The library finds what it needs to add, remove and overwrite."""
    path = tmp_path / "ours.h5"
    write(path, trace_like(3, 8), {"format": "a"})
    with h5py.File(path, "r+") as file:
        file["layers/001/t3"][1] = 5
        del file["layers/001/t4"]
        file["layers/001/new"] = np.arange(1000)
        file["layers/000/t0"].attrs["axes"] = "x" * 1000
        file["layers/000/t0"].dims[1].label = "group of heads"
        file.attrs["format"] = "b" * 100
        for i in range(100):
            file[f"other/{i}"] = i
    with h5py.File(path) as file:
        assert (file["layers/001/t3"][1] == 5).all()
        assert sorted(file["layers/001"]) == ["new", "t0", "t1", "t2", "t3", "t5", "t6", "t7"]
        assert file["layers/001/new"][-1] == 999
        assert [axis.label for axis in file["layers/000/t0"].dims] == ["token", "group of heads", "dim"]
        assert file.attrs["format"] == "b" * 100
        assert len(file["other"]) == 100
        assert file["layers/002/t7"].attrs["op"] == b"op7"


@pytest.mark.parametrize("path", ["a", "/a/", "a//b", "a/./b", "a\0b", "..", "../a", " ", "tensor é"])
def test_paths_lead_where_the_library_takes_them(tmp_path: Path, path: str) -> None:
    found = {path: Dataset(h5_type("float32").encode()[2:], (2,))}
    write(tmp_path / "ours.h5", found, {})
    written_by_hdf5(tmp_path / "theirs.h5", found, {})
    assert content(tmp_path / "ours.h5") == content(tmp_path / "theirs.h5")
    with h5py.File(tmp_path / "ours.h5") as file:
        assert h5py.h5d.open(file.id, path.encode()).shape == (2,)


@pytest.mark.parametrize("path", ["", "/", "/.", "\0a"])
def test_what_is_no_path(path: str) -> None:
    with pytest.raises(ValueError, match="is the root"):
        lay_out({path: Dataset(h5_type("float32").encode()[2:], (2,))}, {}, 8)


@pytest.mark.parametrize("other", ["a//b", "a/b\0c"])
def test_two_paths_to_one_place(other: str) -> None:
    kind = h5_type("uint8").encode()[2:]
    with pytest.raises(ValueError, match="something else"):
        lay_out({"a/b": Dataset(kind, (1,)), other: Dataset(kind, (1,))}, {}, 8)


def test_what_hdf5_has_no_room_for() -> None:
    kind = h5_type("uint8").encode()[2:]
    with pytest.raises(ValueError, match="64 KiB"):
        lay_out({"/a": Dataset(kind, (1,))}, {"prompt": "x" * 70_000}, 8)
    with pytest.raises(ValueError, match="below a dataset"):
        lay_out({"/a": Dataset(kind, (1,)), "/a/b": Dataset(kind, (1,))}, {}, 8)
    with pytest.raises(ValueError, match="something else"):
        lay_out({"/a/b": Dataset(kind, (1,)), "/a": Dataset(kind, (1,))}, {}, 8)
