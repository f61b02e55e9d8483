"""The online softmax's running maximum m and sum l, tile by tile, against the scores themselves."""

import subprocess

import numpy as np
from tensortrace.tracer.names import Key
from tensortrace.tracer.trace import Trace

subprocess.run(
    "trace record -p 'one two three four five six seven eight nine ten' -n 1 -q"
    " --layers 5 --tensors scores,m,l,m_tiles,l_tiles --tile 4 -o softmax.h5",
    shell=True,
    check=True,
)

with Trace("softmax.h5") as trace:
    scores, m, l, m_tiles, l_tiles = (  # noqa: E741 - the field calls it l
        np.asarray(trace.read(Key(5, name), 0), np.float64)
        for name in ("scores", "m", "l", "m_tiles", "l_tiles")
    )

head, query = 0, scores.shape[1] - 1
print(f"head {head}, last query: scores {np.round(scores[head, query], 2)}")
for tile in range(len(m_tiles)):
    print(f"after tile {tile}: m {m_tiles[tile, head, query]:.4f}  l {l_tiles[tile, head, query]:.4f}")

assert np.allclose(m, scores.max(-1))
assert np.allclose(l, np.exp(scores - m[..., None]).sum(-1))
assert np.array_equal(m_tiles[-1], m)
assert np.array_equal(l_tiles[-1], l)
print("m and l are what the scores say")
