"""The public recorder: what goes in comes out, and mistakes are named where they are made."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, ClassVar

import ml_dtypes
import numpy as np
import pytest
from recording import distances, record_trace, worst
from tensortrace.tracer.errors import UserError
from tensortrace.tracer.gguf import Model
from tensortrace.tracer.importer import Options, import_dump
from tensortrace.tracer.names import Key
from tensortrace.tracer.recorder import Recorder
from tensortrace.tracer.trace import Trace


def test_a_trace_recorded_again_is_the_same(tiny: Path, tmp_path: Path) -> None:
    record_trace(Model(tiny), tmp_path / "a.h5", n_new=4, tile=4)
    with Trace(tmp_path / "a.h5") as a, Recorder(tmp_path / "b.h5", model=tiny, tile=4) as rec:
        for step in a.steps:
            rec.step(a.tokens[step.start : step.kv_len])
            for key in a.tensors:
                rec(key.name, a.read(key, step.index), key.layer)
    with Trace(tmp_path / "a.h5") as a, Trace(tmp_path / "b.h5") as b:
        assert b.complete
        assert (b.steps, list(b.tokens), list(b.tensors)) == (a.steps, list(a.tokens), list(a.tensors))
        assert (b.header.model_sha256, b.header.architecture) == (a.header.model_sha256, "llama")
        assert [spec.axes for spec in b.tensors.values()] == [spec.axes for spec in a.tensors.values()]
        found = distances(a, b)
        assert max(found.values()) == 0, worst(found)
    assert not (tmp_path / "b.h5.ttr").exists()


class OnlyArray:
    """Something that has `__array__` and nothing else."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.arange(6.0).reshape(2, 3)


class OnlyDlpack:
    """Something that has DLPack and nothing else."""

    def __init__(self) -> None:
        self.array = np.arange(6, dtype=np.int32).reshape(2, 3)

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.array.__dlpack_device__()


class OnDevice:
    """An array in GPU memory as CuPy has it: no NumPy function may touch it."""

    __cuda_array_interface__: ClassVar[dict[str, Any]] = {}

    def get(self) -> np.ndarray:
        return np.arange(6.0).reshape(2, 3)

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        raise TypeError("Implicit conversion to a NumPy array is not allowed")


SOURCES = {
    "float32": np.ones((2, 3), np.float32),
    "big endian": np.arange(6, dtype=">f4").reshape(2, 3),
    "bfloat16": np.array([[1.5, 2, 3], [4, 5, 6]], ml_dtypes.bfloat16),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "view": np.arange(24.0).reshape(4, 6)[::2, ::2],
    "bool": np.array([[True, False, True]] * 2),
    "list": [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]],
    "__array__": OnlyArray(),
    "dlpack": OnlyDlpack(),
    "cupy": OnDevice(),
}


@pytest.mark.parametrize("name", SOURCES)
def test_takes_anything_that_is_an_array(tmp_path: Path, name: str) -> None:
    source = SOURCES[name]
    with Recorder(tmp_path / "a.h5", tokens=[1, 2]) as rec:
        rec("embd", source)
    expected = OnlyArray() if isinstance(source, OnDevice) else getattr(source, "array", source)
    with Trace(tmp_path / "a.h5") as trace:
        assert np.array_equal(trace.read(Key(None, "embd"), 0), np.asarray(expected))


@pytest.mark.torch
def test_takes_torch_tensors(tmp_path: Path) -> None:
    import torch

    values = torch.arange(6.0).reshape(2, 3) + 0.25
    with Recorder(tmp_path / "a.h5", tokens=[1, 2]) as rec:
        rec("embd", values.to(torch.bfloat16).requires_grad_())
        rec("logits", values.T.contiguous().T)
        rec("attn_norm", values.to(torch.float8_e4m3fn), layer=0)
        rec("attn_out", -values.neg(), layer=0)
        with pytest.raises(UserError, match="without plain values"):
            rec("gate", values.to_sparse(), layer=0)
    with Trace(tmp_path / "a.h5") as trace:
        assert trace.tensors[Key(None, "embd")].dtype == "bfloat16"
        assert trace.tensors[Key(0, "attn_norm")].dtype == "float8_e4m3fn"
        stored = trace.read(Key(None, "embd"), 0).astype(np.float32)
        assert np.array_equal(stored, values.to(torch.bfloat16).float().numpy())
        assert np.array_equal(trace.read(Key(None, "logits"), 0), values.numpy())
        assert np.array_equal(trace.read(Key(0, "attn_out"), 0), values.numpy())


def test_copies_at_once(tmp_path: Path) -> None:
    array = np.zeros((2, 3))
    with Recorder(tmp_path / "a.h5") as rec:
        rec("embd", array)
        array[:] = 7
    with Trace(tmp_path / "a.h5") as trace:
        assert not trace.read(Key(None, "embd"), 0).any()


def test_mistakes_are_named_at_once(tmp_path: Path) -> None:
    q = np.ones((3, 4, 8), np.float32)
    with Recorder(tmp_path / "a.h5", tokens=[1, 2, 3], heads=4) as rec:
        rec("q", q, layer=0)
        for message, call in {
            "comes twice in one forward pass": lambda: rec("q", q, layer=0),
            "belongs to a layer": lambda: rec("q", q),
            "belongs to no layer": lambda: rec("logits", np.ones((3, 9)), layer=0),
            "does not fit": lambda: rec("k", np.ones((2, 3, 4, 8)), layer=0),
            "does not hold 4 heads": lambda: rec("attn", np.ones((3, 30)), layer=0),
            "is said to have the axes": lambda: rec("attn", q, layer=0, axes=("token", "dim")),
            "a batch of 2": lambda: rec("act", np.ones((2, 3, 8)), layer=0, axes=("batch", "token", "ffn")),
            "at most 64 bits": lambda: rec("up", np.ones((3, 8), complex), layer=0),
            "record real numbers": lambda: rec("up", np.array([["a"]]), layer=0),
            "cannot be called 'a/b'": lambda: rec("a/b", q),
            "cannot be called 'tokens'": lambda: rec("tokens", q),
            "whole numbers": lambda: rec.step(tokens=[1.5]),
        }.items():
            with pytest.raises(UserError, match=message):
                call()
    with Trace(tmp_path / "a.h5") as trace:
        assert list(trace.tensors) == [Key(0, "q")]


def test_nothing_recorded_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to import"), Recorder(tmp_path / "a.h5"):
        pass


def test_tokens_may_come_with_the_first_step(tmp_path: Path) -> None:
    with Recorder(tmp_path / "a.h5") as rec:
        rec.step(tokens=np.array([5, 6]))
        rec("embd", np.ones((2, 4)))
        rec.step(tokens=[7])
        rec("embd", np.ones((1, 4)))
    with Trace(tmp_path / "a.h5") as trace:
        assert list(trace.tokens) == [5, 6, 7]
        assert [step.phase for step in trace.steps] == ["prefill", "decode"]


def test_an_exception_leaves_what_was_recorded(tmp_path: Path) -> None:
    def engine() -> None:
        with Recorder(tmp_path / "a.h5", tokens=[1, 2]) as rec:
            rec("embd", np.ones((2, 4)))
            raise ZeroDivisionError("in the engine")

    with pytest.raises(ZeroDivisionError):
        engine()
    with Trace(tmp_path / "a.h5") as trace:
        assert not trace.complete
        assert trace.has(Key(None, "embd"), 0)


def test_threads_may_record_at_once(tmp_path: Path) -> None:
    with Recorder(tmp_path / "a.h5", tokens=range(50)) as rec:
        threads = [
            threading.Thread(target=rec, args=("attn_norm", np.full((50, 64), layer), layer))
            for layer in range(16)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    with Trace(tmp_path / "a.h5") as trace:
        for layer in range(16):
            assert (trace.read(Key(layer, "attn_norm"), 0) == layer).all()


def test_a_killed_process_leaves_a_spool_that_can_be_imported(tmp_path: Path) -> None:
    code = """
import os, sys
import numpy as np
from tensortrace.tracer.recorder import Recorder
rec = Recorder(sys.argv[1], engine="mine", tokens=[1, 2, 3])
rec("embd", np.arange(12.0).reshape(3, 4))
os.kill(os.getpid(), 9)
"""
    output = tmp_path / "a.h5"
    done = subprocess.run([sys.executable, "-c", code, str(output)], env=os.environ, check=False)
    assert done.returncode == -signal.SIGKILL
    assert not output.exists()
    with pytest.raises(UserError, match="`trace import` makes a trace of it"):
        Recorder(output)
    result = import_dump(tmp_path / "a.h5.ttr", output, Options())
    assert result.end == "the engine did not close it"
    with Trace(output) as trace:
        assert (trace.header.engine, list(trace.tokens), trace.complete) == ("mine", [1, 2, 3], False)
        assert np.array_equal(trace.read(Key(None, "embd"), 0), np.arange(12.0).reshape(3, 4))
