"""Small traces for the anomaly rules, written straight from arrays, and what a rule finds in them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tensortrace.analyze.anomaly import Finding, find_anomalies
from tensortrace.kernels import attention as kernel
from tensortrace.tracer.format import Header, TensorSpec, plan_steps
from tensortrace.tracer.names import NAMES, Key
from tensortrace.tracer.trace import Trace
from tensortrace.tracer.writer import TraceWriter

HEADER = Header(engine="test", architecture="llama", model_name="synthetic")
GLOBAL = ("embd", "final_norm", "logits")
TILE = 4

Arrays = Mapping[str, np.ndarray]


def key(name: str) -> Key:
    """q -> layer 0, `3 q` -> layer 3, logits -> outside the layers."""
    layer, _, bare = name.rpartition(" ")
    if bare.partition(".")[0] in GLOBAL:
        return Key(None, bare)
    return Key(int(layer or 0), bare)


def spec(name: str, array: np.ndarray, dtype: str = "float32", **more: Any) -> TensorSpec:
    """How `array` is declared, with the axes of its name."""
    where = key(name)
    axes = more.pop("axes", None) or NAMES[where.name].axes
    sizes = {
        axis: TILE if axis == "tile" else size
        for axis, size in zip(axes, array.shape, strict=True)
        if axis not in ("token", "query", "key")
    }
    return TensorSpec(where, axes, sizes, dtype, **more)


def write(
    path: Path,
    prefill: Arrays,
    decode: Sequence[Arrays] = (),
    *,
    tokens: Sequence[int] | None = None,
    generated: Sequence[int] | None = None,
    n_prompt: int = 12,
    dtype: str = "float32",
    header: Header = HEADER,
    declared: Mapping[str, Mapping[str, Any]] | None = None,
) -> Trace:
    """A trace of one prefill step and the decode steps that follow; token ids count up from 100."""
    steps = plan_steps(n_prompt, len(decode) + 1)
    more = declared or {}
    specs = [spec(name, array, dtype, **more.get(name, {})) for name, array in prefill.items()]
    ids = list(tokens if tokens is not None else range(100, 100 + steps[-1].kv_len))
    new = list(generated if generated is not None else range(len(decode) + 1))
    with TraceWriter(path, header, specs, steps) as writer:
        writer.write_tokens(0, ids, [f" w{token}".encode() for token in ids])
        for index, token in enumerate(new):
            writer.write_generated(index, token)
        for step, arrays in zip(steps, [prefill, *decode], strict=True):
            for name, array in arrays.items():
                writer.write(step.index, key(name), array)
            writer.end_step(step.index)
        writer.finish()
    return Trace(path)


def text(path: Path, generated: Sequence[int], prompt: Sequence[int] = (1, 2, 3)) -> Trace:
    """A trace of nothing but a text: one prefill step and a decode step for each further token."""
    logits = np.random.default_rng(0).normal(size=(len(prompt) + len(generated) - 1, 8)).astype(np.float32)
    rows = [{"logits": logits[at : at + 1]} for at in range(len(prompt), len(logits))]
    return write(
        path,
        {"logits": logits[: len(prompt)]},
        rows,
        tokens=[*prompt, *generated[:-1]],
        generated=generated,
        n_prompt=len(prompt),
    )


def attention(
    tokens: int = 12, heads: int = 4, kv_heads: int = 2, dim: int = 16, *, seed: int = 0, **params: Any
) -> dict[str, np.ndarray]:
    """Everything from q to attn of one layer on random inputs, as the kernel that defines it gives."""
    rng = np.random.default_rng(seed)
    q, k, v = (
        rng.normal(size=(tokens, count, dim)).astype(np.float32) for count in (heads, kv_heads, kv_heads)
    )
    params = {"scale": dim**-0.5, "tile": TILE, **params}
    result = kernel.cpu(q, k, v, want=set(kernel.EXTRAS), **params)
    return {"q": q, "k": k, "v": v, "q_rope": q, "k_rope": k, "attn": result.pop("out"), **result}


def found(trace: Trace, rule: str, **context: Any) -> list[Finding]:
    """What one rule finds; the rule must have been able to judge."""
    report = find_anomalies(trace, **context)
    assert rule in report.run, report.skipped.get(rule)
    return [finding for finding in report.findings if finding.rule == rule]


def skipped(trace: Trace, rule: str, **context: Any) -> str:
    """Why a rule did not judge."""
    return find_anomalies(trace, **context).skipped[rule]
