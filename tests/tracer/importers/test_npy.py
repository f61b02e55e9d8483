"""Folders of .npy files: patterns, mapping files, names of other engines, damage."""

import io
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from dumps import import_and_compare, import_or_refuse, refused, tensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensortrace.tracer.axes import Heads
from tensortrace.tracer.importer import Options, import_dump
from tensortrace.tracer.names import Key
from tensortrace.tracer.trace import Trace


@pytest.fixture
def run(record_tiny: Callable[..., Trace]) -> Trace:
    return record_tiny(n_new=3)


def dump(run: Trace, folder: Path, name: str) -> Path:
    """Every tensor in a file of its own, named by a format string."""
    for step, key, values in tensors(run):
        layer = -1 if key.layer is None else key.layer
        path = folder / name.format(name=key.name, layer=layer, step=step)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, values)
    return folder


def test_a_pattern_says_what_files_are(run: Trace, tmp_path: Path) -> None:
    folder = dump(run, tmp_path / "dump", "{name}_{layer}_{step}.npy")
    for path in folder.glob("*_-1_*"):
        path.rename(path.with_name(path.name.replace("_-1_", "_")))
    (folder / "notes.npy").write_bytes(b"")
    refused(folder, "no .npy file that can be read", pattern="{name}_{layer}_{step}.npy")
    (folder / "notes.npy").unlink()
    done = import_dump(folder, tmp_path / "a.h5", Options(pattern="{name}_{layer}_{step}.npy"))
    assert done.notes[0].startswith("left out 6 arrays not named as the pattern says: embd_0.npy, embd_1.npy")
    with Trace(tmp_path / "a.h5") as trace:
        for step, key, values in tensors(run):
            assert key.layer is None or np.array_equal(trace.read(key, step), values)


def test_layers_and_steps_can_be_folders(run: Trace, tmp_path: Path) -> None:
    folder = tmp_path / "dump"
    for step, key, values in tensors(run):
        place = "model" if key.layer is None else f"layers.{key.layer}"
        path = folder / f"step{step}" / f"{place}.{key.name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, values)
    for path in folder.rglob("model.*.npy"):
        path.rename(path.with_name(path.name.removeprefix("model.")))
    import_and_compare(folder, run, pattern="step{step}/{name}.npy")


def test_layouts_of_other_engines(run: Trace, tmp_path: Path) -> None:
    """Heads in one axis with the dimensions, heads first, a batch axis, Fortran order, the batch squeezed."""
    for number, (step, key, values) in enumerate(tensors(run)):
        folder = tmp_path / "dump" / f"step{step}"
        folder.mkdir(parents=True, exist_ok=True)
        if key.name in ("q", "v"):
            values = values.reshape(len(values), -1)[None] if number % 2 else values.reshape(len(values), -1)
        elif key.name == "scores":
            values = np.asfortranarray(values)[None]
        elif key.name == "logits" and len(values) == 1:
            values = values[0]
        np.save(folder / (key.name if key.layer is None else f"blk.{key.layer}.{key.name}"), values)
    pattern = "step{step}/{name}.npy"
    import_and_compare(tmp_path / "dump", run, pattern=pattern, heads=Heads(4, 2))


def test_a_mapping_file(run: Trace, tmp_path: Path) -> None:
    names = {"q": "query", "scores": "pre_softmax", "attn_out": "proj"}
    for step, key, values in tensors(run):
        name = names.get(key.name, key.name)
        if key.name == "q":
            values = values.transpose(1, 0, 2)
        path = tmp_path / "dump" / f"{name}.{-1 if key.layer is None else key.layer}.{step}.npy"
        if key.layer is None:
            path = path.with_name(f"{name}@{step}.npy")
        path.parent.mkdir(exist_ok=True)
        np.save(path, values)
    mapping = tmp_path / "map.toml"
    files = [
        f'"{name}@{step}.npy" = {{ name = "{name}", step = {step} }}'
        for name in ("embd", "logits")
        for step in range(3)
    ]
    mapping.write_text(
        f"""
        engine = "mine"
        tokens = {run.tokens.tolist()}
        kv_heads = 2
        [names]
        query = "q"
        pre_softmax = "scores"
        proj = "attn_out"
        [axes]
        query = ["head", "token", "dim"]
        [files]
        """
        + "\n".join(files)
    )
    pattern = "{name}.{layer}.{step}.npy"
    imported = import_and_compare(tmp_path / "dump", run, pattern=pattern, map=mapping)
    assert imported.header.engine == "mine"
    assert list(imported.tokens) == list(run.tokens)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("engine = 3", "the entry 'engine' is not what it should be"),
        ("[nam]\nq = 'q'", "has an entry 'nam'"),
        ("[names]\nq = 3", "the entry 'names'"),
        ("[axes]\nq = []", "the entry 'axes'"),
        ("[files]\na = { layer = -1 }", "the entry 'files'"),
        ("tokens = ['a']", "the entry 'tokens'"),
        ("= 3", "is no TOML file"),
    ],
)
def test_mistakes_in_a_mapping(tmp_path: Path, text: str, message: str) -> None:
    np.save(tmp_path / "q.npy", np.ones((2, 4, 8)))
    (tmp_path / "map.toml").write_text(text)
    refused(tmp_path / "q.npy", message, map=tmp_path / "map.toml")


def test_mistakes_in_a_pattern(tmp_path: Path) -> None:
    np.save(tmp_path / "q.npy", np.ones((2, 4, 8)))
    refused(tmp_path / "q.npy", "one of {name}, {layer}", pattern="{nam}.npy")
    refused(tmp_path / "q.npy", "redefinition", pattern="{name}{name}.npy")
    refused(tmp_path / "q.npy", "no array of .* is named as the pattern says", pattern="x{name}.npy")


def test_several_ranks(tmp_path: Path) -> None:
    folder = tmp_path / "dump"
    folder.mkdir()
    for rank in range(2):
        np.save(folder / f"r{rank}_embd.npy", np.full((2, 4), rank))
    refused(folder, r"several processes: choose one with --rank \(0, 1\)", pattern="r{rank}_{name}.npy")
    import_dump(folder, tmp_path / "a.h5", Options(pattern="r{rank}_{name}.npy", rank=1))
    assert (Trace(tmp_path / "a.h5").read(Key(None, "embd"), 0) == 1).all()


def test_what_is_no_tensor_is_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "dump"
    folder.mkdir()
    np.save(folder / "embd.npy", np.ones((2, 4)))
    np.save(folder / "text.npy", np.array(["a", "b"]))
    np.save(folder / "bf16.npy", np.ones(3, ml_dtypes.bfloat16))  # NumPy stores it as bytes without a type
    np.save(folder / "pickled.npy", np.array([{"a": 1}], object), allow_pickle=True)
    done = import_dump(folder, tmp_path / "a.h5", Options())
    assert done.tensors == 1
    assert done.notes[0].startswith(
        "left out 3 arrays of a type that no tensor has: bf16.npy (|V2), pickled.npy"
    )


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "exploded",))

    np.save(tmp_path / "q.npy", np.array([Bomb()], object), allow_pickle=True)
    refused(tmp_path / "q.npy", "nothing to import")
    assert not (tmp_path / "exploded").exists()


def whole() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.arange(24, dtype=np.float32).reshape(2, 3, 4))
    return buffer.getvalue()


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60), st.integers(0, 200), st.integers(0, 60))
def test_damaged_files(tmp_path: Path, junk: bytes, at: int, cut: int) -> None:
    data = whole()
    at = min(at, len(data))
    (tmp_path / "q.npy").write_bytes(data[:at] + junk + data[at + cut :])
    import_or_refuse(tmp_path / "q.npy")
