"""The CUDA engine against the CPU engine: on the kernels compiled for the CPU, or on a GPU."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_device import FakeDevice
from ggufs import write_gguf
from recording import PROMPT, distances, header, record_trace, worst
from tensortrace.analyze.cause import Injection
from tensortrace.tracer.architecture import build_graph
from tensortrace.tracer.device import CudaDevice
from tensortrace.tracer.engines.cuda import Engine
from tensortrace.tracer.errors import TraceError, UserError
from tensortrace.tracer.gguf import Model
from tensortrace.tracer.graph import Graph
from tensortrace.tracer.names import Key
from tensortrace.tracer.record import Request, Result, record
from tensortrace.tracer.selection import Selection
from tensortrace.tracer.trace import Trace

ROUNDING = {"float32": 1e-5, "float16": 2e-2, "bfloat16": 0.15}


def record_cuda(
    model: Model,
    device: FakeDevice | CudaDevice,
    path: Path,
    ids: tuple[int, ...] = PROMPT,
    *,
    dtype: str = "float32",
    tile: int = 128,
    change: Callable[[Graph], Graph] = lambda graph: graph,
    **request: Any,
) -> Result:
    graph = change(build_graph(model, softmax="online", tile=tile))
    engine = Engine(graph, model, dtype=dtype, device=device)
    return record(engine, Request(ids, **request), path, header(model, tile=tile))


def check(a: Path, b: Path, limit: float) -> None:
    with Trace(a) as cuda, Trace(b) as cpu:
        assert set(cuda.tensors) == set(cpu.tensors)
        assert not list(cuda.damaged())
        found = distances(cuda, cpu)
        assert max(found.values()) <= limit, worst(found)


@pytest.mark.parametrize("length", [1, 2, 17, 130])
def test_every_tensor_is_that_of_the_cpu(tiny_model: Model, device: Any, tmp_path: Path, length: int) -> None:
    ids = tuple(int(token) for token in np.random.default_rng(length).integers(0, 299, length))
    record_cuda(tiny_model, device, tmp_path / "cuda.h5", ids, n_new=6, tile=48)
    record_trace(tiny_model, tmp_path / "cpu.h5", ids, n_new=6, tile=48)
    check(tmp_path / "cuda.h5", tmp_path / "cpu.h5", ROUNDING["float32"])


@pytest.mark.parametrize("qtype", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_quantised_weights(device: Any, tmp_path: Path, qtype: str) -> None:
    model = Model(write_gguf(tmp_path / "m.gguf", embd=64, ff=96, qtype=qtype, bias=True, tied=True))
    record_cuda(model, device, tmp_path / "cuda.h5", n_new=3)
    record_trace(model, tmp_path / "cpu.h5", n_new=3)
    check(tmp_path / "cuda.h5", tmp_path / "cpu.h5", ROUNDING["float32"])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_rounding(tiny_model: Model, device: Any, tmp_path: Path, dtype: str) -> None:
    record_cuda(tiny_model, device, tmp_path / "cuda.h5", dtype=dtype, n_new=1)
    record_trace(tiny_model, tmp_path / "cpu.h5", n_new=1)
    check(tmp_path / "cuda.h5", tmp_path / "cpu.h5", ROUNDING[dtype])


def test_decode_replays_a_graph_and_every_step_is_new(tiny_model: Model, device: Any, tmp_path: Path) -> None:
    record_cuda(tiny_model, device, tmp_path / "cuda.h5", n_new=8)
    if isinstance(device, FakeDevice):
        assert device.launches == 6  # of seven decode steps the first is run plainly
        assert device.on_their_way == 0
    with Trace(tmp_path / "cuda.h5") as trace:
        steps = [trace.read(Key(1, "q_rope"), step.index) for step in trace.flushed[1:]]
        assert all(not np.array_equal(a, b) for a, b in pairwise(steps))


def test_two_runs_agree_to_the_bit(tiny_model: Model, device: Any, tmp_path: Path) -> None:
    for name in ("a", "b"):
        record_cuda(tiny_model, device, tmp_path / f"{name}.h5", n_new=5)
    check(tmp_path / "a.h5", tmp_path / "b.h5", 0.0)


FAULTS = [
    "kv_dup",
    "gqa_map",
    "kv_slot",
    "softmax_no_max",
    "norm_plus_one",
    "rope_position",
    "norm_missing",
    "logit_scale",
]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_the_same_on_the_gpu(tiny_model: Model, device: Any, tmp_path: Path, fault: str) -> None:
    change = Injection.parse(fault).apply
    record_cuda(tiny_model, device, tmp_path / "cuda.h5", n_new=4, change=change)
    record_trace(tiny_model, tmp_path / "cpu.h5", n_new=4, change=change)
    check(tmp_path / "cuda.h5", tmp_path / "cpu.h5", ROUNDING["float32"])


@pytest.mark.parametrize("fault", ["dequant_layout@q", "tile_tail@ffn_out", "qkv_split"])
def test_a_fault_for_the_cpu_alone_is_refused_in_one_line(
    tiny_model: Model, device: Any, tmp_path: Path, fault: str
) -> None:
    with pytest.raises(UserError, match=r"the fault put into L00 .* --engine cpu") as raised:
        record_cuda(tiny_model, device, tmp_path / "cuda.h5", change=Injection.parse(fault).apply)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "request_",
    [
        {"selection": Selection(tensors="scores,q,m_tiles"), "n_new": 4},
        {"selection": Selection(tokens="3-4,11-12"), "n_new": 5},
        {"selection": Selection(phase="decode"), "n_new": 5, "storage": "float16"},
        {"stats_only": True, "n_new": 4},
        {"chunk": 4, "n_new": 3},
    ],
    ids=["some tensors", "some tokens", "decode in f16", "statistics", "chunks"],
)
def test_what_is_asked_for_is_recorded(
    tiny_model: Model, device: Any, tmp_path: Path, request_: dict[str, Any]
) -> None:
    record_cuda(tiny_model, device, tmp_path / "cuda.h5", **request_)
    assert not device.on_their_way
    record_trace(tiny_model, tmp_path / "cpu.h5", **request_)
    with Trace(tmp_path / "cuda.h5") as cuda, Trace(tmp_path / "cpu.h5") as cpu:
        assert set(cuda.tensors) == set(cpu.tensors)
        for step in cpu.flushed:
            for key in cpu.tensors:
                if cpu.has(key, step.index) and not key.name.endswith(".hist"):
                    a, b = cuda.read(key, step.index), cpu.read(key, step.index)
                    np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3)


@pytest.mark.gpu
def test_a_copy_that_nobody_waits_for_writes_into_no_other_memory() -> None:
    device, ones = CudaDevice(), np.ones(1 << 20, np.float32)
    source = device.upload(ones)

    def upload_while_copying() -> bool:
        for _ in range(8):
            device.fetch(source).release()
        return bool((device.upload(0 * ones) == 0).all())

    assert all(device.run(upload_while_copying) for _ in range(50))


def test_a_full_disk_ends_the_run_and_not_in_a_wait(
    tiny_model: Model, device: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.pwritev", lambda fd, data, at: 0)
    with pytest.raises(TraceError, match="the disk is full"):
        record_cuda(tiny_model, device, tmp_path / "cuda.h5", n_new=40)
    if isinstance(device, FakeDevice):
        assert device.on_their_way == 0


def test_other_dtypes_are_refused(tiny_model: Model, device: Any) -> None:
    with pytest.raises(UserError, match="not float64"):
        Engine(build_graph(tiny_model), tiny_model, dtype="float64", device=device)
