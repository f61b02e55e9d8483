"""A model's weights on the GPU: matrices in their GGUF type, vectors as float32."""

from typing import Any

import numpy as np

from ..kernels.dequantize import LAYOUT, PLAIN, Blocks
from .device import CudaDevice
from .format import numpy_dtype
from .gguf import Model

COLUMNS = 8  # the kernels decode eight weights of a row at a time


class GpuWeights:
    """Uploads on first use.  A type that the kernels do not read is dequantised to the compute dtype."""

    def __init__(self, model: Model, device: CudaDevice, dtype: str):
        self.model, self._device, self._dtype = model, device, dtype
        self._held: dict[str, Any] = {}

    def weight(self, name: str) -> Any:
        """`Blocks` [out, in] of a matrix, [expert, out, in] of several; a float32 array of a vector."""
        if name not in self._held:
            self._held[name] = self._upload(name)
        return self._held[name]

    def _upload(self, name: str) -> Any:
        if len(self.model.shape(name)) == 1:
            return self._device.upload(self.model.weight(name, np.float32))
        kind = self.model.tensor_type(name)
        if kind in LAYOUT and self.model.shape(name)[-1] % COLUMNS == 0:
            raw = self.model.raw(name)
        else:
            kind = PLAIN[self._dtype]
            raw = self.model.weight(name, np.float32).astype(numpy_dtype(self._dtype))
        data = np.ascontiguousarray(raw).view(np.uint8).reshape(*self.model.shape(name)[:-1], -1)
        return Blocks(self._device.upload(data), kind)

    def nbytes(self, names: set[str]) -> int:
        """Device bytes of these weights."""
        total = 0
        for name in names:
            shape, kind = self.model.shape(name), self.model.tensor_type(name)
            size = int(np.prod(shape))
            if len(shape) == 1:
                total += 4 * size
            elif kind in LAYOUT and shape[-1] % COLUMNS == 0:
                per_block, block_bytes = LAYOUT[kind]
                total += size // per_block * block_bytes
            else:
                total += size * numpy_dtype(self._dtype).itemsize
        return total
