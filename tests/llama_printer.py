"""A live llama.cpp whose evaluation callback prints as `common/debug.cpp` does.

As in llama-eval-callback every node is printed, and only the last token's logits are asked for.
"""

import ctypes
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGMLQuantizationType as Kind
from tensortrace.tracer.engines import llama_cpp
from tensortrace.tracer.ggml import Tensor, read_nodes
from tensortrace.tracer.gguf import Model

SHOWN = 3  # first and last of each axis


def print_run(
    model: Path, prompt: Sequence[int], generated: Sequence[int], log: Path, **options: Any
) -> None:
    """Feed the prompt at once, then token by token what was generated, and write the log.

    `options` are those of the engine.
    """
    engine = llama_cpp.Engine(None, Model(model), **options)
    with log.open("w") as file:

        def look(address: int, ask: bool, _: Any) -> bool:
            if not ask:
                file.writelines(_node(engine._ggml, address))
            return True

        context = llama_cpp._Context(engine._llama, len(prompt) + len(generated), look)
        for start, ids in ((0, prompt), *((len(prompt) + i, [token]) for i, token in enumerate(generated))):
            _decode(engine._llama.api, context._context, ids, start)


def _decode(api: Any, context: Any, ids: Sequence[int], start: int) -> None:
    count = len(ids)
    batch = api.llama_batch(n_tokens=count)
    batch.token = (ctypes.c_int32 * count)(*ids)
    batch.pos = (ctypes.c_int32 * count)(*range(start, start + count))
    batch.logits = (ctypes.c_int8 * count)(*[0] * (count - 1), 1)
    assert api.llama_decode(context, batch) == 0


def _node(ggml: Any, address: int) -> Iterator[str]:
    (node,) = read_nodes(ggml, [address])
    kind = Kind(node.kind).name.lower()
    sources = [f"{source.name}{{{', '.join(map(str, source.sizes))}}}" for source in node.sources[:2]]
    first, second = (*sources, "", "")[:2]
    sizes = ", ".join(map(str, node.sizes))
    computed = f"{node.op:>10}({first}, {second}}})"
    yield f"common_debug_cb_eval: {node.name:>24} = ({kind}) {computed} = {{{sizes}}}\n"
    if kind.startswith("q"):  # of quantised ones there is just the line
        return
    values = ggml.view(address).astype(np.float32)
    for part in values:
        yield "    [\n"
        yield from _part(part, 8)
        yield "    ]\n"
    with np.errstate(all="ignore"):
        yield f"    sum = {np.add.accumulate(values.ravel())[-1]:f}\n"
    assert Tensor.from_address(address).name.decode() == node.name


def _part(values: np.ndarray, indent: int) -> Iterator[str]:
    """A matrix of rows, or rows of one."""
    size, blank = len(values), " " * indent
    for index in range(size):
        if SHOWN <= index < size - SHOWN:
            if index == SHOWN:
                yield f"{blank}..., \n"
        elif values.ndim == 1:
            raise AssertionError
        elif values.ndim == 2:
            yield f"{blank}[ {_row(values[index])}  ],\n"
        else:
            yield f"{blank}[\n"
            yield from _part(values[index], indent + 4)
            yield f"{blank}],\n"


def _row(values: np.ndarray) -> str:
    shown = [f"{value:12.4f}" for value in values]
    if len(shown) > 2 * SHOWN:
        shown[SHOWN:-SHOWN] = ["   ..."]
    return ", ".join(shown)
