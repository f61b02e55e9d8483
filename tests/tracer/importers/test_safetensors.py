"""safetensors files, written here by hand and, where it is installed, by the package itself."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from dumps import import_and_compare, import_or_refuse, refused, tensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensortrace.tracer.importer import Options, import_dump
from tensortrace.tracer.names import Key
from tensortrace.tracer.trace import Trace


def write(path: Path, arrays: dict[str, np.ndarray], **header: Any) -> Path:
    kinds = {
        "float32": "F32",
        "float16": "F16",
        "bfloat16": "BF16",
        "float8_e4m3fn": "F8_E4M3",
        "int32": "I32",
    }
    at, body = 0, b""
    for name, array in arrays.items():
        data = array.tobytes()
        entry = {"dtype": kinds[array.dtype.name], "shape": array.shape, "data_offsets": [at, at + len(data)]}
        header.setdefault(name, entry)
        at, body = at + len(data), body + data
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)
    return path


def test_a_run(record_tiny: Callable[..., Trace], tmp_path: Path) -> None:
    run = record_tiny(n_new=3)
    folder = tmp_path / "dump"
    folder.mkdir()
    for step in run.steps:
        arrays = {
            key.name if key.layer is None else f"blk.{key.layer}.{key.name}": values
            for number, key, values in tensors(run)
            if number == step.index
        }
        write(folder / f"step{step.index}.safetensors", arrays, __metadata__={"format": "pt"})
    import_and_compare(folder, run)


def test_types(tmp_path: Path) -> None:
    arrays = {
        "embd": np.array([[1.5, -2, 0.25]], ml_dtypes.bfloat16),
        "attn_norm-0": np.array([[1.5, -2, 0.25]], np.float16),
        "x": np.array([[1, 2, 3]], np.int32),
        "y": np.array([[1, 2, 0.5]], ml_dtypes.float8_e4m3fn),
    }
    import_dump(write(tmp_path / "a.safetensors", arrays), tmp_path / "a.h5", Options())
    with Trace(tmp_path / "a.h5") as trace:
        for name, key in (("embd", Key(None, "embd")), ("x", Key(None, "x")), ("y", Key(None, "y"))):
            assert trace.tensors[key].dtype == arrays[name].dtype.name
            assert np.array_equal(trace.read(key, 0), arrays[name])


@pytest.mark.torch
def test_files_of_the_package_itself(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    q = torch.arange(64, dtype=torch.bfloat16).reshape(2, 4, 8)
    save_file(
        {"layers.0.q": q, "layers.0.mask": torch.ones(2, 2, dtype=torch.bool)}, tmp_path / "a.safetensors"
    )
    import_dump(tmp_path / "a.safetensors", tmp_path / "a.h5", Options())
    with Trace(tmp_path / "a.h5") as trace:
        assert np.array_equal(trace.read(Key(0, "q"), 0).astype(np.float32), q.float().numpy())
        assert trace.tensors[Key(0, "mask")].dtype == "uint8"


ARRAYS = {"q-0": np.ones((2, 4, 8), np.float32)}
Q = {"dtype": "F32", "shape": [2, 4, 8], "data_offsets": [0, 256]}


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "F12"},
        {"shape": [2, 4, 9]},
        {"shape": [-2, -4, 8]},
        {"shape": "248"},
        {"shape": [True, 64]},
        {"data_offsets": [0, 257]},
        {"data_offsets": [4, 260]},
        {"data_offsets": [0]},
        {"data_offsets": None},
        {"shape": [2, 4, 8.0]},
    ],
)
def test_entries_that_do_not_fit(tmp_path: Path, change: dict[str, Any]) -> None:
    path = write(tmp_path / "a.safetensors", ARRAYS, **{"q-0": {**Q, **change}})
    refused(path, "the entry of 'q-0' is damaged")


@pytest.mark.parametrize("text", [b"[1]", b"{", b"\xff\xfe", b"[" * 50_000])
def test_headers_that_are_none(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    refused(path, "is no safetensors file")
    path.write_bytes((1 << 60).to_bytes(8, "little") + text)
    refused(path, "its header would be")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=20), st.integers(0, 400), st.integers(0, 30))
def test_damaged_files(tmp_path: Path, junk: bytes, at: int, cut: int) -> None:
    data = write(tmp_path / "a.safetensors", ARRAYS).read_bytes()
    (tmp_path / "a.safetensors").write_bytes(data[:at] + junk + data[at + cut :])
    import_or_refuse(tmp_path / "a.safetensors")
