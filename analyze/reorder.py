"""The two orders in which Q and K keep the elements of RoPE pairs, along the last axis."""

import numpy as np


def half_split(x: np.ndarray) -> np.ndarray:
    """[..., dim] with pairs (2i, 2i+1), as GGUF's llama has them, in transformers' order (i, i + dim/2)."""
    *outer, dim = x.shape
    return x.reshape(*outer, dim // 2, 2).swapaxes(-1, -2).reshape(*outer, dim).copy()


def interleaved(x: np.ndarray) -> np.ndarray:
    """The reverse of `half_split`."""
    *outer, dim = x.shape
    return x.reshape(*outer, 2, dim // 2).swapaxes(-1, -2).reshape(*outer, dim).copy()
