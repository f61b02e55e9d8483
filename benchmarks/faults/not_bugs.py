"""What was taken for a bug and is none: the same mathematics done another way, put into our engine.

Others of the list have rows of their own among the engines' runs: llama.cpp's table of GELU, transformers'
SmolLM 3, Gemma's GELU.  A stale build, a wrong first diagnosis and a window whose convention is disputed are
nothing that can be run.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from tensortrace.tracer.graph import Graph, Op
from tensortrace.tracer.selection import Selection

Wrap = Callable[..., Any]
EVERYTHING = Selection()


@dataclass(frozen=True)
class Equivalent:
    """A change of ops that is none of the result; `on` are the architectures to try it on."""

    change: Callable[[Op], Op]
    on: tuple[str, ...] = ("llama",)
    selection: Selection = EVERYTHING

    def graph(self, graph: Graph) -> Graph:
        return graph.replace(self.change)


def in_ops(kind: str, wrap: Wrap, *names: str) -> Callable[[Op], Op]:
    def change(op: Op) -> Op:
        return op.wrapped(wrap) if op.kind == kind and op.out.name in (names or (op.out.name,)) else op

    return change


def heads_in_order(compute: Wrap) -> Wrap:
    """Softmax is blind to the order of keys: attention over reversed heads, put back."""

    def reordered(q: Any, k: Any, v: Any, **params: Any) -> Any:
        made = compute(q[:, ::-1].copy(), k[:, ::-1].copy(), v[:, ::-1].copy(), **params)
        axis = {"out": 1, "m_tiles": 1, "l_tiles": 1}
        return {name: np.flip(array, axis.get(name, 0)).copy() for name, array in made.items()}

    return reordered


def scale_in_q(compute: Wrap) -> Wrap:
    """The softmax scale folded into Q and K before the product, in another order of operations."""

    def folded(q: Any, k: Any, v: Any, *, scale: float, **params: Any) -> Any:
        root = q.dtype.type(scale**0.5)
        return compute(q * root, k * root, v, scale=1.0, **params)

    return folded


def normed_twice(compute: Wrap) -> Wrap:
    """x / rms(x) has an rms of 1: dividing by it again changes nothing, as epsilon is small."""

    def twice(x: Any, gain: Any, *, eps: float) -> Any:
        return compute(compute(x, np.ones_like(gain), eps=eps), gain, eps=1e-12)

    return twice


def other_frequencies(compute: Wrap) -> Wrap:
    """base^-(i / (dims/2)) in place of base^-(2i / dims), pairs turned as complex numbers."""

    def rotate(x: Any, positions: Any, *, base: float, dims: int, pairing: str) -> Any:
        angle = positions[:, None] * base ** -(np.arange(dims // 2) / (dims // 2))
        turned = (x[..., :dims:2] + 1j * x[..., 1:dims:2]) * np.exp(1j * angle)[:, None]
        out = x.copy()
        out[..., :dims:2], out[..., 1:dims:2] = turned.real, turned.imag
        return out

    return rotate


def two_ranks(compute: Wrap) -> Wrap:
    """Each rank multiplies half of the columns; the bias is added on the first alone."""

    def partial(x: Any, weight: Any, bias: Any = None, **params: Any) -> Any:
        x = x.reshape(len(x), -1)
        half = weight.shape[1] // 2
        first = compute(x[:, :half], weight[:, :half], *(() if bias is None else (bias,)), **params)
        return first + compute(x[:, half:], weight[:, half:], **params)

    return partial


def softmax_then_top_k(compute: Wrap) -> Wrap:
    """Softmax over all experts, the chosen ones divided by their sum: a softmax over the chosen ones."""

    def weights(router: Any, ids: Any, **params: Any) -> Any:
        p = np.exp(router - router.max(-1, keepdims=True))
        p = np.take_along_axis(p / p.sum(-1, keepdims=True), ids.astype(np.intp), -1)
        return p / p.sum(-1, keepdims=True)

    return weights


def gelu_by_sigmoid(compute: Wrap) -> Wrap:
    """tanh GELU is x sigmoid(2 sqrt(2/pi) (x + 0.044715 x³))."""

    def glu(gate: Any, up: Any, **params: Any) -> Any:
        wide = gate.astype(np.float64)
        inner = 2 * np.sqrt(2 / np.pi) * (wide + 0.044715 * wide**3)
        return (wide / (1 + np.exp(-inner)) * up).astype(gate.dtype)

    return glu


def norm_behind_rope(op: Op) -> Op:
    """A norm of Q and K whose gain is one for all elements commutes with the rotation."""
    if op.out.name in ("q_norm", "k_norm"):
        return op.wrapped(lambda compute: lambda x, gain, **params: x.copy())
    if op.kind != "rope":
        return op

    def wrap(compute: Wrap) -> Wrap:
        def rotate(x: Any, *operands: Any, **params: Any) -> Any:
            turned = compute(x, *operands, **params)
            return turned / np.sqrt((turned**2).mean(-1, keepdims=True) + turned.dtype.type(1e-5))

        return rotate

    return op.wrapped(wrap)


WITHOUT_QK_NORM = "embd,attn_norm,q,k,v,q_rope,k_rope,scores,m,l,probs,attn,attn_out,resid_out,logits"
EQUIVALENT = {
    "heads in another order": Equivalent(in_ops("attention", heads_in_order)),
    "scale folded into Q and K": Equivalent(in_ops("attention", scale_in_q), ("llama", "granite", "qwen3")),
    "norm applied twice": Equivalent(in_ops("rms_norm", normed_twice), ("llama tiny eps",)),
    "frequencies by another formula": Equivalent(in_ops("rope", other_frequencies)),
    "bias on the first rank": Equivalent(in_ops("linear", two_ranks, "q", "k", "v"), ("qwen2", "llama")),
    "softmax, then top k, renormalised": Equivalent(
        in_ops("expert_weights", softmax_then_top_k), ("llama/mixtral", "qwen3moe")
    ),
    "tanh GELU as a sigmoid": Equivalent(in_ops("glu", gelu_by_sigmoid), ("gemma2", "gemma3")),
    "QK-norm without gain behind RoPE": Equivalent(
        norm_behind_rope, ("qwen3 without gain",), Selection(tensors=WITHOUT_QK_NORM)
    ),
}
