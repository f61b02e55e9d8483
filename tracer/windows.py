"""Which layers attend within a window only, as a GGUF says it."""

from .graph import Weights


def windows(model: Weights, every: int, default: int = 0) -> list[int | None]:
    """The window of each layer (keys seen, the query's own counted); None where it sees everything.

    attention.sliding_window is the width (`default` where it is missing, 0 for no windows at all).
    attention.sliding_window_pattern says for each layer whether it has one, or that the last layer of each so
    many has none (`every` where it is missing), as llama.cpp's `load_swa_pattern` reads it.
    """
    layers = model.hparam("block_count")
    width = model.hparam("attention.sliding_window", default)
    pattern = model.hparam("attention.sliding_window_pattern", every)
    if not isinstance(pattern, list):
        period = pattern
        pattern = [period == 0 or layer % period < period - 1 for layer in range(layers)]
    return [int(width) if width and windowed else None for windowed in pattern[:layers]]
