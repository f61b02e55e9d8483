"""What looks like a fault and is none stays silent: the same mathematics done another way.

Reports of such, taken for bugs at first: llama.cpp#1925 (norm twice), LLMs-from-scratch#410 (frequencies of
RoPE), nano-vllm#99 (bias on the first rank), modular#5647 (permuted q and k: test_arrangement.py).
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ggufs import write_gguf
from recording import record_trace
from tensortrace.analyze.cause import with_inputs
from tensortrace.analyze.compare import compare
from tensortrace.analyze.verify import verify
from tensortrace.tracer.gguf import Model
from tensortrace.tracer.graph import Compute, Graph, Op
from tensortrace.tracer.names import Key
from tensortrace.tracer.trace import Trace

Wrap = Callable[[Compute], Compute]


def in_ops(kind: str, wrap: Wrap, name: str = "") -> Callable[[Graph], Graph]:
    def change(op: Op) -> Op:
        return op.wrapped(wrap) if op.kind == kind and name in ("", op.out.name) else op

    return lambda graph: graph.replace(change)


def twice(compute: Compute) -> Compute:
    """x / rms(x) has an rms of 1: dividing by it again changes nothing, as far as epsilon is small."""
    return lambda x, gain, eps: compute(compute(x, np.ones_like(gain), eps=eps), gain, eps=eps)


def other_frequencies(compute: Compute) -> Compute:
    """base^-(i / (dim/2)), i < dim/2, where the definition has base^-(2i / dim), 2i < dim; pairs turned as
    complex numbers."""

    def rotate(x: np.ndarray, positions: np.ndarray, *, base: float, dims: int, pairing: str) -> np.ndarray:
        half = dims // 2
        angle = positions[:, None] * base ** -(np.arange(half) / half)
        turned = (x[..., ::2] + 1j * x[..., 1::2]) * np.exp(1j * angle)[:, None]
        return np.stack([turned.real, turned.imag], -1).reshape(x.shape).astype(x.dtype)

    return rotate


def two_ranks(compute: Compute) -> Compute:
    """Each rank multiplies half of the columns; the bias is added on the first alone."""

    def partial(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None, **params) -> np.ndarray:
        x = x.reshape(len(x), -1)
        half = weight.shape[1] // 2
        first = compute(x[:, :half], weight[:, :half], bias, **params)
        return first + compute(x[:, half:], weight[:, half:], **params)

    return partial


def repeated_heads(compute: Compute) -> Compute:
    """Every query head has a KV head of its own, repeated from its group's."""

    def repeat(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> tuple:
        group = q.shape[1] // k.shape[1]
        return q, np.repeat(k, group, 1), np.repeat(v, group, 1)

    return with_inputs(repeat)(compute)


def scaled_before(compute: Compute) -> Compute:
    """Q takes the square root of the scale, and so does K."""

    def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, *, scale: float, **params) -> dict:
        root = np.float32(scale**0.5)
        return compute(q * root, k * root, v, scale=1.0, **params)

    return attend


EQUIVALENT = {
    "norm twice": in_ops("rms_norm", twice),
    "other frequencies": in_ops("rope", other_frequencies),
    "two ranks": in_ops("linear", two_ranks),
    "bias on the first rank": in_ops("linear", two_ranks, "q"),
    "repeated KV heads": in_ops("attention", repeated_heads),
    "scale on Q and K": in_ops("attention", scaled_before),
    "other order of the sum": in_ops("add", with_inputs(lambda x, y: (y, x))),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    path = tmp_path_factory.mktemp("models") / "m.gguf"
    return Model(write_gguf(path, bias=True, eps=1e-9))  # where epsilon is not small, a second norm undoes it


@pytest.mark.parametrize("name", EQUIVALENT)
def test_silent(model: Model, tmp_path: Path, name: str) -> None:
    record_trace(model, tmp_path / "a.h5", n_new=4, change=EQUIVALENT[name])
    record_trace(model, tmp_path / "b.h5", n_new=4)
    ours, reference = Trace(tmp_path / "a.h5"), Trace(tmp_path / "b.h5")
    assert compare(ours, reference).verdict in ("match", "rounding")
    assert compare(reference, ours).verdict in ("match", "rounding")
    assert verify(ours, model).verdict == "rounding"


@pytest.mark.parametrize("masked", [-1e30, np.finfo(np.float32).min])
def test_a_mask_need_not_be_infinite(model: Model, tmp_path: Path, masked: float) -> None:
    """Engines mask scores by a large negative number."""

    def finite(compute: Compute) -> Compute:
        def attend(*operands: np.ndarray, **params) -> dict:
            made = compute(*operands, **params)
            if "scores" in made:
                made["scores"] = np.maximum(made["scores"], np.float32(masked))
            return made

        return attend

    record_trace(model, tmp_path / "a.h5", n_new=3, change=in_ops("attention", finite))
    record_trace(model, tmp_path / "b.h5", n_new=3)
    ours, reference = Trace(tmp_path / "a.h5"), Trace(tmp_path / "b.h5")
    assert ours.read(Key(0, "scores"), 0).min() == np.float32(masked)
    assert compare(ours, reference).exit_code == 0
    assert verify(ours, model).verdict == "rounding"
