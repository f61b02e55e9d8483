"""Every tensor of a run by our CPU engine against the same of another engine, step by step."""

import math
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from recording import nrmse, worst
from tensortrace.tracer.architecture import build_graph
from tensortrace.tracer.engines.cpu import Engine
from tensortrace.tracer.format import Step, plan_steps
from tensortrace.tracer.gguf import Model
from tensortrace.tracer.graph import Op
from tensortrace.tracer.names import Key
from tensortrace.tracer.packed import Places, unpack
from tensortrace.tracer.plan import shapes

TILES = {"m_tiles", "l_tiles"}  # neither reference has a running softmax
Seen = list[dict[Key, np.ndarray]]  # of each step


class Taken:
    """Keeps what an engine shows of one step."""

    def __init__(self, engine: Any, step: Step):
        self.engine, self.step, self.seen = engine, step, {}

    def __call__(self, key: Key, array: Any) -> None:
        self.seen[key] = np.array(array)

    def packed(self, block: Any, places: Places) -> None:
        sizes = shapes(self.engine.graph, 1, self.step.kv_len)
        for key, array in unpack(np.array(block), places):
            self(key, array[tuple(map(slice, sizes[key]))])  # not what pads it to the longest step
        block.release()


def run(engine: Any, tokens: Sequence[int]) -> Seen:
    """Every tensor of every step as `engine` computes it: a prompt, then the last three tokens one by one."""
    keys = engine.available()
    assert [spec.key for spec in engine.specs(keys, "float32")] == keys
    session = engine.start(keys, len(tokens))
    seen: Seen = []
    for step in plan_steps(len(tokens) - 3, 4):
        taken = Taken(engine, step)
        session.step(step, np.array(tokens[step.start : step.kv_len]), taken)
        seen.append(taken.seen)
    return seen


def ours(
    model: Model,
    tokens: Sequence[int],
    dtype: str = "float32",
    change: Callable[[Op], Op] = lambda op: op,
) -> Seen:
    return run(Engine(build_graph(model, tile=5).replace(change), model, dtype=dtype), tokens)


def check(found: Seen, expected: Seen, limit: float, unseen: Collection[str] = TILES) -> None:
    """What only one of the two has must be in `unseen`, and all of that."""
    errors = {}
    for index, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert {key.name for key in one.keys() ^ other.keys()} == set(unseen)
        errors |= {(index, key): nrmse(one[key], other[key]) for key in one.keys() & other.keys()}
    assert max(errors.values()) <= limit, worst(errors)


def check_against_llama_cpp(model: Model, tokens: Sequence[int]) -> None:
    from tensortrace.tracer.engines import llama_cpp

    theirs = run(llama_cpp.Engine(build_graph(model), model), tokens)
    check(ours(model, tokens, change=with_gelu_table_of(theirs)), theirs, 1e-4)


def check_against_transformers(model: Model, tokens: Sequence[int], folder: Path) -> None:
    import transformers_models
    from tensortrace.tracer.engines import torch

    theirs = run(torch.Engine(build_graph(model), transformers_models.save(model, folder)), tokens)
    check(ours(model, tokens), theirs, 1e-5)


def with_gelu_table_of(theirs: Seen) -> Callable[[Op], Op]:
    """llama.cpp's own GELU in our graph, looked up where llama.cpp does: by the last bit of a gate that is a
    hair's breadth between two entries of the table, ours could hit the next one."""

    def change(op: Op) -> Op:
        if op.kind != "gelu" and op.params.get("activation") != "gelu_tanh":
            return op
        gates = iter([step[op.inputs[0]] for step in theirs])
        return op.wrapped(lambda compute: lambda gate, *up, **_: math.prod(up, start=gelu_table(next(gates))))

    return change


def gelu_table(x: np.ndarray) -> np.ndarray:
    """ggml's `ggml_vec_gelu_f32` with GGML_GELU_FP16: GELU of x rounded to float16, rounded to float16.

    0 from -10 down, x from 10 up.  The table was filled in float32, with 1 + A x x rounded once where the
    compiler fuses the two operations.
    """
    rounded = x.astype(np.float16).astype(np.float32)
    square = (np.float32(0.044715) * rounded).astype(np.float64) * rounded
    inner = np.float32((2 / np.pi) ** 0.5) * rounded * (1 + square).astype(np.float32)
    tanh = np.tanh(inner.astype(np.float64)).astype(np.float32)
    found = (np.float32(0.5) * rounded * (1 + tanh)).astype(np.float16).astype(np.float32)
    return np.where(x <= -10, np.float32(0), np.where(x >= 10, x, found))
