"""The CUDA engine: the graph run on the `.cu` kernels through CuPy.

The prompt runs op by op; decode steps replay a captured CUDA graph whose kernels write every recorded tensor
into one block of device memory, which is copied to the host as a whole while the next step runs.
"""

from collections.abc import Collection, Iterable

from ..cuda_memory import estimate
from ..cuda_run import OUTBOXES, CudaRunner
from ..cuda_weights import GpuWeights
from ..device import CudaDevice
from ..errors import UserError
from ..format import Step, TensorSpec
from ..gguf import Model
from ..graph import Graph
from ..names import Key
from ..plan import tensor_specs

NAME = "cuda"
DTYPES = ("float32", "float16", "bfloat16")


class Engine:
    """Implements `record.Engine` on a graph and a GPU."""

    def __init__(
        self, graph: Graph, model: Model, *, dtype: str = "float32", device: CudaDevice | None = None
    ):
        if dtype not in DTYPES:
            raise UserError(f"the cuda engine computes in {', '.join(DTYPES)}, not {dtype}")
        self._device = device or CudaDevice()
        self.graph, self.compute_dtype = graph, dtype
        self.weights = GpuWeights(model, self._device, dtype)
        self.name, self.version, self.device = NAME, _cupy_version(), self._device.name

    def available(self) -> list[Key]:
        return self.graph.outputs

    def specs(self, keys: Iterable[Key], storage: str) -> list[TensorSpec]:
        return tensor_specs(self.graph, keys, storage)

    def start(self, wanted: Collection[Key], max_tokens: int) -> CudaRunner:
        return CudaRunner(
            self.graph,
            self.weights,
            self._device,
            dtype=self.compute_dtype,
            wanted=wanted,
            max_tokens=max_tokens,
        )

    def memory(self, wanted: Collection[Key], steps: Iterable[Step]) -> int:
        """Bytes of GPU memory that a run of `steps` takes at the most."""
        return estimate(
            self.graph,
            self.weights,
            steps,
            wanted,
            self.compute_dtype,
            outboxes=OUTBOXES,
        )


def _cupy_version() -> str:
    from importlib.metadata import packages_distributions, version

    owners = packages_distributions().get("cupy", [])
    return f"cupy {version(owners[0])}" if owners else "no cupy"
