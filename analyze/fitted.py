"""A trace as a model's operations can read it: in the model's shapes and its order of elements.

Tensors of other shapes, or that show some of their values only, are as if they had not been recorded.
"""

from functools import cached_property

import numpy as np

from ..tracer.format import TensorSpec
from ..tracer.graph import Graph
from ..tracer.names import Key
from ..tracer.plan import tensor_specs
from ..tracer.trace import Trace
from .clipped import is_clipped, largest, unclipped
from .partial import is_partial

PAIRED = ("q", "k", "q_norm", "k_norm", "q_rope", "k_rope")  # in the order in which RoPE pairs elements
OWN = ("cpu", "cuda")  # our engines state how they rotate, and keep the order of the model


class Fitted(Trace):
    """A view of an open trace; `misfits` says of tensors why they don't fit the model."""

    def __init__(self, trace: Trace, graph: Graph):
        self.__dict__.update(trace.__dict__)
        self.specs = {spec.key: spec for spec in tensor_specs(graph, graph.outputs, "float64")}
        self._turned = {op.out.layer: op.params for op in graph.ops if op.kind == "rope"}
        found = ((key, self._misfit(key)) for key in self.specs if key in trace.tensors)
        self.misfits = {key: why for key, why in found if why}
        self.whole = {key for key in self.specs if key in trace.tensors and self._is_whole(key)}

    @cached_property
    def clipped(self) -> set[Key]:
        """Tensors some of whose numbers the file could not hold: ops can't read them as recorded."""
        return {key for key in self.whole if is_clipped(self, key)}

    def unclipped(self, key: Key, recorded: np.ndarray, computed: np.ndarray) -> np.ndarray:
        """What was recorded, with what is computed in place of such numbers."""
        return unclipped(recorded, computed, largest(self.tensors[key], self.header.compute_dtype))

    def _misfit(self, key: Key) -> str:
        ours, spec = self.tensors[key], self.specs[key]
        flat = ours.joined and spec.joined and _row_size(ours) == _row_size(spec)
        if flat or (ours.axes == spec.axes and ours.sizes == spec.sizes):
            return ""
        return f"recorded as {_shape(ours)}, where the model has {_shape(spec)}"

    def _is_whole(self, key: Key) -> bool:
        spec = self.tensors[key]
        return key not in self.misfits and not is_partial(spec) and spec.conventions.get("rows") != "last"

    def written(self, key: Key) -> np.ndarray:
        return super().written(key) & (key in self.whole)

    def read(self, key: Key, step: int) -> np.ndarray:
        return self.fit(key, super().read(key, step))

    def fit(self, key: Key, array: np.ndarray) -> np.ndarray:
        """Rows of a tensor as the model shapes and orders them."""
        if not self.tensors[key].joined:
            return array
        array = array.reshape(self.specs[key].shape(len(array), 0))
        stated = self.tensors[key].conventions.get("pairing")
        turned = self._turned.get(key.layer, {})
        if key.name not in PAIRED or stated is None or self.header.engine in OWN:
            return array
        if "pairing" not in turned or stated == turned["pairing"]:
            return array
        return _reordered(array, turned["dims"], to_half_split=turned["pairing"] == "half-split")


def _reordered(array: np.ndarray, dims: int, *, to_half_split: bool) -> np.ndarray:
    """[token, head, dim] with the elements of RoPE pairs apart (i, i + dims/2), or side by side."""
    turned, rest = array[..., :dims], array[..., dims:]
    shape = (*turned.shape[:-1], dims // 2, 2) if to_half_split else (*turned.shape[:-1], 2, dims // 2)
    return np.concatenate([turned.reshape(shape).swapaxes(-1, -2).reshape(turned.shape), rest], -1)


def _row_size(spec: TensorSpec) -> int:
    return int(np.prod([spec.sizes[axis] for axis in spec.axes[1:]]))


def _shape(spec: TensorSpec) -> str:
    return " x ".join(f"{axis} {spec.sizes[axis]}" if axis in spec.sizes else axis for axis in spec.axes)
