"""Some tensors to write, and their values."""

from pathlib import Path

import numpy as np
from tensortrace.tracer.format import Header, Step, TensorSpec, numpy_dtype
from tensortrace.tracer.names import Key
from tensortrace.tracer.writer import TraceWriter

Q = TensorSpec(Key(0, "q"), ("token", "head", "dim"), {"head": 2, "dim": 3})
PROBS = TensorSpec(Key(1, "probs"), ("head", "query", "key"), {"head": 2})
TILES = TensorSpec(Key(1, "l_tiles"), ("tile", "head", "query"), {"tile": 4, "head": 2})
COUNTS = TensorSpec(Key(1, "probs.hist"), ("head", "query", "bin"), {"head": 2, "bin": 5}, "uint32")
IDS = TensorSpec(Key(1, "expert_ids"), ("token", "slot"), {"slot": 2}, "int32")
LOGITS = TensorSpec(Key(None, "logits"), ("token", "vocab"), {"vocab": 7})
SPECS = [Q, PROBS, TILES, COUNTS, IDS, LOGITS]


def values(spec: TensorSpec, step: Step, seed: int = 0) -> np.ndarray:
    """Bits at random: NaN, infinities and denormals among them."""
    rng = np.random.default_rng([seed, step.index, *spec.key.name.encode()])
    dtype, shape = numpy_dtype(spec.dtype), spec.shape(step.n_tokens, step.kv_len)
    return rng.integers(0, 256, (*shape, dtype.itemsize), np.uint8).view(dtype)[..., 0]


def write(path: Path, specs: list[TensorSpec], steps: list[Step], recorded=None, **options) -> None:
    with TraceWriter(path, Header(engine="test"), specs, steps, recorded=recorded, **options) as writer:
        for step in steps:
            for spec in specs:
                writer.write(step.index, spec.key, values(spec, step))
            writer.end_step(step.index)
        writer.finish()
