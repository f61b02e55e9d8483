"""The frozen reference: digests of every tensor of a SmolLM2 run as transformers computes it.

tests/golden/smollm2_torch.npz was made by `python tests/smollm2_golden.py` with the `torch` extra; a test
marked `torch` checks that transformers still gives it.  It holds, for every step and tensor, the L2 norm and
PROJECTIONS inner products with fixed random signs.  The products of two arrays differ, as root mean square
over the projections, by about the L2 norm of their difference: that estimates the NRMSE from 20 bytes.
"""

import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from tensortrace.tracer.names import Key, execution_order

PATH = Path(__file__).parent / "golden" / "smollm2_torch.npz"
TILE = 16  # several tiles of keys in 64 tokens
PROJECTIONS = 4

# "The capital of France is Paris. A transformer computes attention: softmax(QK^T / sqrt(d)) V. Here is some
# code: for i in range(10): print(i ** 2), and a"
PROMPT = [
    *(504, 3575, 282, 4649, 314, 7042, 30, 330, 26832, 35864, 2674, 42, 2375, 3831, 24, 65, 59, 78, 68, 2272),
    *(41383, 24, 84, 1292, 717, 30, 3726, 314, 634, 2909, 42, 327, 2056, 281, 1845, 24, 33, 32, 727, 1628),
    *(24, 89, 1903, 216, 34, 643, 284, 253),
]
N_NEW = 17  # the token after the prompt and those of 16 decode steps


@cache
def _signs(size: int) -> np.ndarray:
    """[projection, size] of +1 and -1, from raw bits because NumPy promises that those stay the same."""
    bits = np.random.PCG64(0).random_raw(size)[None, :] >> np.arange(PROJECTIONS, dtype=np.uint64)[:, None]
    return 1.0 - 2.0 * (bits & np.uint64(1))


def digest(array: np.ndarray) -> np.ndarray:
    """[1 + PROJECTIONS]: the norm of the finite entries and their projections."""
    flat = np.where(np.isfinite(array), array, 0).astype(np.float64).ravel()
    return np.array([np.linalg.norm(flat), *(_signs(flat.size) @ flat)], np.float32)


def distance(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """The estimated NRMSE of what has digest `found` [..., 1 + PROJECTIONS] against `expected`."""
    off = np.sqrt(np.mean((found[..., 1:] - expected[..., 1:]) ** 2, axis=-1))
    return off / expected[..., 0]


def digests(steps: Sequence[Mapping[Key, np.ndarray]]) -> np.ndarray:
    """[step, tensor, 1 + PROJECTIONS], tensors in execution order."""
    return np.array([[digest(step[key]) for key in sorted(step, key=execution_order)] for step in steps])


def generate(gguf: Path) -> tuple[np.ndarray, np.ndarray]:
    """(ids generated greedily, digests of all steps) by transformers."""
    from transformers_reference import Capture, load

    capture = Capture(load(gguf), TILE)
    steps, generated, fed = [], [], PROMPT
    for _ in range(N_NEW):
        steps.append(capture.step(fed))
        fed = [int(steps[-1][Key(None, "logits")][-1].argmax())]
        generated += fed
    return np.array(generated), digests(steps)


if __name__ == "__main__":
    from tensortrace.tracer.hub import resolve

    ids, table = generate(resolve(sys.argv[1] if len(sys.argv) > 1 else None))
    np.savez_compressed(PATH, generated=ids, digests=table)
    print(f"{PATH}: {table.shape}, {PATH.stat().st_size} bytes")
