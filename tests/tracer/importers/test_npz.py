"""NumPy archives."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dumps import import_and_compare, import_or_refuse, refused, tensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recording import record_trace
from tensortrace.analyze.compare import compare
from tensortrace.tracer.errors import UserError
from tensortrace.tracer.gguf import Model
from tensortrace.tracer.importer import Options, import_dump
from tensortrace.tracer.trace import Trace


def arrays(run: Trace, step: int) -> dict[str, np.ndarray]:
    return {
        key.name if key.layer is None else f"layers.{key.layer}.{key.name}": values
        for number, key, values in tensors(run)
        if number == step
    }


def test_an_archive_for_each_step(record_tiny: Callable[..., Trace], tmp_path: Path) -> None:
    run = record_tiny(n_new=3)
    folder = tmp_path / "dump"
    folder.mkdir()
    for step in run.steps:
        save = np.savez if step.index % 2 else np.savez_compressed
        save(folder / f"step_{step.index}.npz", **arrays(run, step.index))
    import_and_compare(folder, run)
    import_and_compare(folder, run, pattern="step_{step}.npz:{name}")


def test_one_archive(record_tiny: Callable[..., Trace], tmp_path: Path) -> None:
    run = record_tiny(n_new=2)
    named = {f"{name}@{step}": a for step in (0, 1) for name, a in arrays(run, step).items()}
    np.savez(tmp_path / "run.npz", **named)
    import_and_compare(tmp_path / "run.npz", run, pattern="{name}@{step}")


def test_other_archives_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 and then nothing")
    refused(tmp_path / "a.npz", "is no .npz file")
    (tmp_path / "a.npz").write_bytes(b"")
    refused(tmp_path / "a.npz", "is no .npz file")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=20), st.integers(0, 700), st.integers(0, 30), st.booleans())
def test_damaged_archives(tmp_path: Path, junk: bytes, at: int, cut: int, compressed: bool) -> None:
    buffer = io.BytesIO()
    save = np.savez_compressed if compressed else np.savez
    save(buffer, q=np.arange(64, dtype=np.float32).reshape(2, 4, 8), embd=np.ones((2, 4)))
    data = buffer.getvalue()
    at = min(at, len(data))
    (tmp_path / "a.npz").write_bytes(data[:at] + junk + data[at + cut :])
    import_or_refuse(tmp_path / "a.npz")


def test_q_and_k_in_transformers_order(tmp_path: Path, tiny_model: Model) -> None:
    """As SGLang or vLLM have them, whose weights are those of the original checkpoint, not of the GGUF."""
    record_trace(tiny_model, tmp_path / "exact.h5", n_new=1)
    with Trace(tmp_path / "exact.h5") as exact:
        arrays = {key: exact.read(key, 0) for key in exact.tensors if key.name in ("q", "k_rope", "v")}
        for key, array in arrays.items():
            if key.name != "v":
                apart = array.reshape(*array.shape[:-1], -1, 2).swapaxes(-1, -2)  # the halves of each pair
                arrays[key] = apart.reshape(array.shape)
        np.savez(tmp_path / "a.npz", **{f"layers.{key.layer}.{key.name}": a for key, a in arrays.items()})
        for half_split in (False, True):
            output = tmp_path / f"{half_split}.h5"
            import_dump(tmp_path / "a.npz", output, Options(half_split=half_split))
            with Trace(output) as trace:
                found = compare(trace, exact)
                assert found.exit_code == 0
                noted = any("elements of RoPE pairs in another order" in note for note in found.notes)
                assert noted != half_split
    np.savez(tmp_path / "flat.npz", **{"layers.0.q": np.ones((3, 64), np.float32)})
    with pytest.raises(UserError, match="give --model or --heads"):
        import_dump(tmp_path / "flat.npz", tmp_path / "x.h5", Options(half_split=True))
