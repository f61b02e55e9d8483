"""How much each chosen expert counts: softmax of the router's scores (llama.cpp `build_moe_ffn`).

Over all experts (Qwen 2 MoE), or renormalised, which is the softmax over the chosen ones alone (Mixtral,
Qwen 3 MoE, gpt-oss).
"""

import numpy as np

from . import cuda as gpu

EXPRESSIONS = {"expert_weights.cu": [f"expert_weights<{t}>" for t in gpu.STORAGE.values()]}


def cpu(router: np.ndarray, ids: np.ndarray, *, renormalised: bool, scale: float = 1.0) -> np.ndarray:
    """router [token, expert], ids [token, slot], best first -> weights [token, slot], times `scale`."""
    ids = ids.astype(np.intp)  # a replay reads every tensor as floating-point numbers
    chosen = np.take_along_axis(router, ids, -1)
    top = router.max(-1, keepdims=True)
    weights = np.exp(chosen - top)
    counted = weights if renormalised else np.exp(router - top)
    return weights / counted.sum(-1, keepdims=True) * router.dtype.type(scale)


def cuda(
    router: gpu.Array,
    ids: gpu.Array,
    *,
    renormalised: bool,
    scale: float = 1.0,
    out: gpu.Array | None = None,
) -> gpu.Array:
    """As `cpu`, on the GPU; ids are int32."""
    out = gpu.empty(ids.shape, router.dtype) if out is None else out
    numbers = (np.int32(router.shape[1]), np.int32(ids.shape[1]), np.int32(renormalised), np.float32(scale))
    expression = f"expert_weights<{gpu.storage(router)}>"
    gpu.launch("expert_weights.cu", expression, (ids.shape[0],), (32,), router, ids, out, *numbers)
    return out


def shape(router: tuple[int, ...], ids: tuple[int, ...], **_: object) -> tuple[int, ...]:
    return ids
