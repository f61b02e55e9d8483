#!/bin/sh
# Record a short run of a real model and look inside the trace, with our commands and without them.
set -eu
trace record -p "The capital of France is" -n 4 --layers 0-1 -o run.h5
trace info run.h5
trace ls run.h5 'q*'
trace show run.h5 scores --layer 0 --slice '0'
python - <<'PYTHON'
import h5py  # a trace is plain HDF5

with h5py.File("run.h5") as file:
    q = file["layers/00/q"]
    print(q.shape, q.attrs["axes"], "prompt:", file["prompt"][()].decode())
PYTHON
