"""The trace format: headers, steps, tensor descriptions and stored types."""

from dataclasses import replace
from pathlib import Path

import h5py
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensortrace.tracer.format import (
    Header,
    TensorSpec,
    h5_text,
    h5_type,
    numpy_dtype,
    plan_steps,
    read_text,
)
from tensortrace.tracer.names import Key

texts = st.text(st.characters(exclude_categories=["Cs"]))
json_values = st.dictionaries(texts, st.one_of(st.integers(-9, 9), texts, st.booleans(), st.none()))
Q = TensorSpec(Key(3, "q"), ("token", "head", "dim"), {"head": 4, "dim": 8})


@given(texts, json_values, json_values)
def test_header_survives_as_attributes(text: str, hyperparameters: dict, sampling: dict) -> None:
    header = Header(engine=text, prompt=text, hyperparameters=hyperparameters, sampling=sampling)
    assert Header.from_attributes(header.to_attributes()) == header


def test_header_reads_what_an_older_or_newer_minor_version_wrote() -> None:
    assert Header.from_attributes({"engine": "x", "from_the_future": "y"}).engine == "x"
    assert Header.from_attributes({}).hyperparameters == {}


@given(st.integers(1, 50), st.integers(1, 20), st.none() | st.integers(1, 60))
def test_steps_cover_the_run(prompt: int, new: int, chunk: int | None) -> None:
    steps = plan_steps(prompt, new, chunk)
    assert [step.index for step in steps] == list(range(len(steps)))
    assert [step.start for step in steps] == [0, *(step.kv_len for step in steps[:-1])]
    assert sum(step.n_tokens for step in steps if step.phase == "prefill") == prompt
    assert [step.n_tokens for step in steps if step.phase == "decode"] == [1] * (new - 1)
    assert chunk is None or max(step.n_tokens for step in steps) <= chunk


def test_shapes_follow_the_step() -> None:
    assert Q.shape(5, 99) == (5, 4, 8)
    scores = TensorSpec(Key(0, "scores"), ("head", "query", "key"), {"head": 4})
    assert scores.shape(5, 99) == (4, 5, 99)
    tiles = TensorSpec(Key(0, "m_tiles"), ("tile", "head", "query"), {"tile": 16, "head": 4})
    assert [tiles.shape(2, keys)[0] for keys in (1, 16, 17, 32, 33)] == [1, 1, 2, 2, 3]


def test_spec_survives_as_json() -> None:
    spec = replace(Q, inputs=(Key(None, "embd"),), conventions={"scale": 0.125}, source="Qcur-3", op="linear")
    assert TensorSpec.from_json({**spec.to_json(), "from_the_future": 1}) == spec


@pytest.mark.parametrize(
    "lie",
    [
        {"key": [0, ""]},
        {"key": [-1, "q"]},
        {"key": ["0", "q"]},
        {"key": [0, 7]},
        {"axes": []},
        {"axes": ["token", "key"], "sizes": {}},
        {"axes": ["token", "tile"], "sizes": {"tile": 4}},
        {"sizes": {"head": 4}},
        {"sizes": {"head": -4, "dim": 8}},
        {"sizes": {"head": 4, "dim": 0}},
        {"sizes": {"head": 4, "dim": 2**60}},
        {"sizes": {"head": 4, "dim": 8.0}},
        {"sizes": {"head": True, "dim": 8}},
        {"dtype": "object"},
        {"dtype": "finfo"},
        {"dtype": "S8"},
        {"dtype": ""},
    ],
    ids=str,
)
def test_an_impossible_description_is_refused(lie: dict) -> None:
    with pytest.raises(ValueError, match=r"."):
        TensorSpec.from_json({**Q.to_json(), **lie})


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float8_e5m2", "float16"])
def test_every_bit_pattern_shows_as_its_number(name: str, tmp_path: Path) -> None:
    """HDF5 itself converts the stored type to float32: what h5dump, HDFView or xarray show."""
    dtype = np.dtype(getattr(ml_dtypes, name, name))
    patterns = np.arange(2 ** (8 * dtype.itemsize)).astype(f"u{dtype.itemsize}")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        data = file.create_dataset("x", patterns.shape, h5_type(name))
        raw = patterns.view(f"V{dtype.itemsize}")
        data.id.write(h5py.h5s.ALL, h5py.h5s.ALL, raw, h5_type(name))
    shown = np.empty(patterns.shape, np.float32)
    with h5py.File(tmp_path / "a.h5") as file:
        file["x"].id.read(h5py.h5s.ALL, h5py.h5s.ALL, shown)
    expected = patterns.view(dtype).astype(np.float32)
    # HDF5 takes the largest exponent for Inf and NaN; float8_e4m3fn spends it on numbers
    usual = np.isfinite(expected) & (np.abs(expected) < 256 if name == "float8_e4m3fn" else True)
    assert np.array_equal(shown[usual], expected[usual])
    assert usual.mean() > 0.9


@pytest.mark.parametrize("name", ["int8", "uint32", "int64", "float32", "float64", "bfloat16", "float8_e5m2"])
def test_stored_types_are_little_endian_numbers(name: str) -> None:
    kind = h5_type(name)
    assert kind.get_order() == h5py.h5t.ORDER_LE
    assert kind.get_size() == numpy_dtype(name).itemsize
    assert kind.get_class() in (h5py.h5t.FLOAT, h5py.h5t.INTEGER)


@given(texts)
def test_texts_survive(text: str) -> None:
    assert read_text(h5_text(text)[()]) == text.rstrip("\0")


def test_a_prompt_that_is_not_unicode_is_kept_legibly() -> None:
    assert read_text(h5_text("a\udcff")[()]) == "a\\udcff"
