"""Raw binary files with a manifest."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dumps import import_and_compare, import_or_refuse, refused, tensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensortrace.tracer.importer import Options, import_dump
from tensortrace.tracer.names import Key
from tensortrace.tracer.trace import Trace


def write(folder: Path, *entries: dict[str, Any], **facts: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps({**facts, "tensor": entries}))
    return folder


def test_a_run(record_tiny: Callable[..., Trace], tmp_path: Path) -> None:
    """All values in one file, some of them first axis fastest as ggml has them."""
    run = record_tiny(n_new=3)
    folder = tmp_path / "dump"
    folder.mkdir()
    entries, at = [], 0
    with (folder / "all.bin").open("wb") as file:
        for number, (step, key, values) in enumerate(tensors(run)):
            entry: dict[str, Any] = {"file": "all.bin", "name": key.name, "step": step, "offset": at}
            entry["shape"] = list(values.shape)
            if key.layer is not None:
                entry["layer"] = key.layer
            if number % 3 == 0:
                entry |= {"shape": list(values.shape[::-1]), "order": "F"}
            entries.append(entry)
            at += file.write(values.tobytes())
    steps = [{"tokens": run.tokens[step.start : step.kv_len].tolist()} for step in run.steps]
    imported = import_and_compare(write(folder, *entries, engine="mine", step=steps), run)
    assert list(imported.tokens) == list(run.tokens)
    assert imported.header.engine == "mine"


def test_toml_and_types(tmp_path: Path) -> None:
    (tmp_path / "q.f16").write_bytes(np.arange(64, dtype=np.float16).tobytes())
    (tmp_path / "run.toml").write_text(
        """
        dtype = "float16"
        [[tensor]]
        file = "q.f16"
        name = "Qcur-3"
        shape = [4, 2, 8]
        axes = ["head", "token", "dim"]
        """
    )
    import_dump(tmp_path / "run.toml", tmp_path / "a.h5", Options())
    with Trace(tmp_path / "a.h5") as trace:
        stored = trace.read(Key(3, "q"), 0)
        assert np.array_equal(stored, np.arange(64, dtype=np.float16).reshape(4, 2, 8).transpose(1, 0, 2))


ENTRY: dict[str, Any] = {"file": "a.bin", "name": "embd", "shape": [2, 8]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"file": "b.bin"}, "b.bin does not exist"),
        ({"file": "../outside.bin"}, "outside its folder"),
        ({"file": "/etc/passwd"}, "outside its folder"),
        ({"file": "link.bin"}, "outside its folder"),
        ({"file": "a\0b"}, "names the file"),
        ({"file": "."}, "does not exist"),
        ({"shape": [2, 9]}, "has 64 bytes; the manifest says"),
        ({"shape": [2, -8]}, "the entry 'shape'"),
        ({"offset": 4}, "has 64 bytes"),
        ({"dtype": "float12"}, "no tensor is stored as 'float12'"),
        ({"dtype": "object"}, "no tensor is stored as 'object'"),
        ({"layer": "0"}, "the entry 'layer'"),
        ({"order": "A"}, "the entry 'order'"),
        ({"nmae": "q"}, "has an entry 'nmae'"),
        ({"name": None}, "the entry 'name'"),
    ],
)
def test_mistakes(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    (tmp_path / "outside.bin").write_bytes(bytes(64))
    folder = write(tmp_path / "dump", {**ENTRY, **change})
    (folder / "a.bin").write_bytes(bytes(64))
    (folder / "link.bin").symlink_to(tmp_path / "outside.bin")
    refused(folder, message)


def test_other_mistakes(tmp_path: Path) -> None:
    refused(write(tmp_path / "dump", {"file": "a.bin"}), "a tensor lacks name, shape")
    refused(write(tmp_path / "dump"), "nothing to import")
    refused(write(tmp_path / "dump", tensors=[]), "has an entry 'tensors'")
    (tmp_path / "dump" / "manifest.json").write_text("[" * 100_000)
    refused(tmp_path / "dump", "is no manifest")
    (tmp_path / "dump" / "manifest.json").write_text("[]")
    refused(tmp_path / "dump", "is no table with entries")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 2**40) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from([*ENTRY, "layer", "step", "dtype", "axes", "offset", "order"]), JSON))
def test_any_entry(tmp_path: Path, change: dict[str, Any]) -> None:
    folder = write(tmp_path / "dump", {**ENTRY, **change})
    (folder / "a.bin").write_bytes(bytes(64))
    import_or_refuse(folder)
