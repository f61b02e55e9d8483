"""How long a model's weights say that its Q, K and V vectors are.

The input of the projections is the output of an RMS norm: x of unit mean square, times the gain g.  With
A = W_h · diag(g) the rows of one head, a vector y = A·x + b has

    E|y|^2 = sum of A^2 + |b|^2     for x of no preferred direction,
    |y|   <= s(A)·sqrt(n) + |b|     always (s: largest singular value; |x|^2 = n).

Real x has preferred directions: on SmolLM2, |q| and |k| of a layer come to 0.97-2.0 times the expectation
and |v| to 0.4-1.2 times, once the first layer (whose inputs are the rows of the embedding) uses those.
"""

from dataclasses import dataclass

import numpy as np

from ..tracer.gguf import Model
from ..tracer.graph import Graph, Op
from ..tracer.names import Key

EMBEDDING_SAMPLE = 1024  # rows of the embedding that stand for all

SOURCES = {"q_rope": "q", "k_rope": "k"}  # rotation keeps the length


@dataclass(frozen=True)
class Length:
    """L2 norms of a projection's head vectors [head]: what is expected, and what can never be exceeded."""

    typical: np.ndarray
    bound: np.ndarray


def expected_length(graph: Graph, model: Model, key: Key) -> Length | None:
    """The lengths of `key` (q, k, v, or these rotated); None where it does not follow from one norm."""
    source = graph.producer(Key(key.layer, SOURCES.get(key.name, key.name)))
    rotated = graph.producer(key)
    if source is None or rotated is None or (rotated is not source and rotated.inputs[0] != source.out):
        return None  # something, such as QK-norm, lies between
    norm = graph.producer(source.inputs[0]) if source.kind == "linear" else None
    if norm is None or norm.kind != "rms_norm" or "heads" not in source.params:
        return None
    gain = model.weight(norm.weights[0])
    weight = model.weight(source.weights[0]) * gain
    heads = weight.reshape(source.params["heads"], -1, weight.shape[1])
    bias = model.weight(source.weights[1]) if len(source.weights) > 1 else np.zeros(len(weight), np.float32)
    offset = np.linalg.norm(bias.reshape(heads.shape[:2]), axis=1)
    gram = heads @ heads.transpose(0, 2, 1)
    largest = np.sqrt(np.linalg.eigvalsh(gram)[:, -1])
    return Length(
        typical=np.sqrt(_mean_square(graph, model, norm, heads) + offset**2),
        bound=largest * weight.shape[1] ** 0.5 + offset,
    )


def _mean_square(graph: Graph, model: Model, norm: Op, heads: np.ndarray) -> np.ndarray:
    """E|A·x|^2 [head]: x are the embedding's rows behind the first norm, and directionless behind others."""
    source = graph.producer(norm.inputs[0])
    if source is None or source.kind != "embedding":
        return np.einsum("hdn,hdn->h", heads, heads)
    table = source.weights[0]
    ids = np.linspace(0, model.shape(table)[0] - 1, EMBEDDING_SAMPLE).astype(int)
    x = model.rows(table, np.unique(ids)).astype(np.float64)
    power = (x * x).mean(-1, keepdims=True)
    x = (x / np.sqrt(power + norm.params["eps"]))[power[:, 0] > 0]
    y = np.einsum("hdn,tn->thd", heads, x, optimize=True)
    return np.einsum("thd,thd->h", y, y) / max(len(x), 1)
