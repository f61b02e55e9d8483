"""Traces made of given arrays, for tests that need no model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tensortrace.tracer.format import Header, TensorSpec, plan_steps
from tensortrace.tracer.names import NAMES, Key
from tensortrace.tracer.trace import Trace
from tensortrace.tracer.writer import TraceWriter


def write_trace(
    path: Path,
    tensors: Mapping[Key, np.ndarray],
    *,
    tokens: Sequence[int] | None = None,
    n_prompt: int | None = None,
    chunk: int | None = None,
    recorded: Sequence[int] | None = None,
    pieces: Sequence[bytes] | None = None,
    finished: bool = True,
    **header: Any,
) -> Trace:
    """Write token-first arrays [token, ...] (of the vocabulary, else with axes token, x0, x1, …) and open it.

    The first `n_prompt` tokens (default all) are the prompt, the others are decoded one by one.
    """
    n_tokens = len(next(iter(tensors.values()))) if tensors else len(tokens or [1])
    tokens = list(range(n_tokens)) if tokens is None else list(tokens)
    steps = plan_steps(n_prompt or n_tokens, n_tokens - (n_prompt or n_tokens) + 1, chunk)
    specs = [_spec(key, array) for key, array in tensors.items()]
    head = Header(**{"engine": "test", **header})
    with TraceWriter(path, head, specs, steps, recorded=recorded) as writer:
        for step in steps:
            part = slice(step.start, step.kv_len)
            writer.write_tokens(step.start, tokens[part], None if pieces is None else pieces[part])
            for key, array in tensors.items():
                writer.write(step.index, key, array[part])
            if finished:
                writer.end_step(step.index)
        writer.finish()
    return Trace(path)


def _spec(key: Key, array: np.ndarray) -> TensorSpec:
    known = NAMES.get(key.name)
    fits = known is not None and len(known.axes) == array.ndim
    axes = known.axes if fits else ("token", *(f"x{i}" for i in range(array.ndim - 1)))
    return TensorSpec(key, axes, dict(zip(axes[1:], array.shape[1:])), array.dtype.name)
