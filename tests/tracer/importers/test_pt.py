"""PyTorch files; without torch just that the package is asked for."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dumps import import_and_compare, import_or_refuse, refused, tensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensortrace.tracer.errors import MissingExtra
from tensortrace.tracer.importer import Options, choose, import_dump
from tensortrace.tracer.names import Key
from tensortrace.tracer.trace import Trace


def test_without_torch_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    (tmp_path / "a.pt").write_bytes(b"PK")
    assert choose(tmp_path / "a.pt", Options()).FORMAT == "pt"
    with pytest.raises(MissingExtra, match=r"tensortrace\[torch\]"):
        import_dump(tmp_path / "a.pt", tmp_path / "a.h5", Options())


@pytest.mark.torch
def test_a_run(record_tiny: Callable[..., Trace], tmp_path: Path) -> None:
    import torch

    run = record_tiny(n_new=3)
    folder = tmp_path / "dump"
    folder.mkdir()
    for step in run.steps:
        nested: dict[str, Any] = {"layers": {}}
        for number, key, values in tensors(run):
            if number == step.index:
                place = nested if key.layer is None else nested["layers"].setdefault(str(key.layer), {})
                place[key.name] = torch.from_numpy(values)
        torch.save(nested, folder / f"step_{step.index}.pt")
    import_and_compare(folder, run)


@pytest.mark.torch
def test_single_tensors_and_old_files(tmp_path: Path) -> None:
    import torch

    q = torch.arange(64, dtype=torch.bfloat16).reshape(2, 4, 8)
    torch.save(q, tmp_path / "q-0.pt", _use_new_zipfile_serialization=False)
    import_dump(tmp_path / "q-0.pt", tmp_path / "a.h5", Options())
    with Trace(tmp_path / "a.h5") as trace:
        assert trace.tensors[Key(0, "q")].dtype == "bfloat16"
        assert np.array_equal(trace.read(Key(0, "q"), 0).astype(np.float32), q.float().numpy())


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.target,))


@pytest.mark.torch
@pytest.mark.parametrize("new", [True, False])
def test_nothing_is_executed(tmp_path: Path, new: bool) -> None:
    import torch

    torch.save({"q": Bomb(tmp_path / "exploded")}, tmp_path / "q.pt", _use_new_zipfile_serialization=new)
    refused(tmp_path / "q.pt", "cannot be loaded without executing code")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.torch
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=20), st.integers(0, 1500), st.integers(0, 30))
def test_damaged_files(tmp_path: Path, junk: bytes, at: int, cut: int) -> None:
    import torch

    torch.save({"layers.0.q": torch.ones(2, 4, 8)}, tmp_path / "a.pt")
    data = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "a.pt").write_bytes(data[:at] + junk + data[at + cut :])
    import_or_refuse(tmp_path / "a.pt")
