"""The CPU engine: the graph run on the NumPy kernels, in float32 or float64."""

from collections.abc import Collection, Iterable
from importlib.metadata import version

import numpy as np

from ..errors import UserError
from ..format import TensorSpec
from ..graph import Graph
from ..names import Key
from ..plan import tensor_specs
from ..run import Runner, WeightSource

NAME = "cpu"
DTYPES = ("float32", "float64")


class Engine:
    """Implements `record.Engine` on a graph; `weights` gives the dequantised arrays."""

    def __init__(self, graph: Graph, weights: WeightSource, *, dtype: str = "float32"):
        if dtype not in DTYPES:
            raise UserError(f"the cpu engine computes in {' or '.join(DTYPES)}, not {dtype}")
        self.graph, self.weights, self.compute_dtype = graph, weights, dtype
        self.name, self.version, self.device = NAME, f"numpy {version('numpy')}", "cpu"

    def available(self) -> list[Key]:
        return self.graph.outputs

    def specs(self, keys: Iterable[Key], storage: str) -> list[TensorSpec]:
        return tensor_specs(self.graph, keys, storage)

    def start(self, wanted: Collection[Key], max_tokens: int) -> Runner:
        return Runner(
            self.graph,
            self.weights,
            dtype=np.dtype(self.compute_dtype),
            wanted=wanted,
            max_tokens=max_tokens,
        )
