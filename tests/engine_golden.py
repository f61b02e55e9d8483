"""Frozen traces of llama.cpp and of torch: short runs of SmolLM2 that `make test` reads without either.

`python tests/engine_golden.py` made the files in tests/golden, with the `torch` and `llamacpp` extras:
6 tokens of prompt and 2 decode steps, in float32 throughout, of the tensors and layers chosen here.

| file | engine | weights |
|---|---|---|
| torch.h5 | transformers, eager attention | Q4_1, dequantised to float32 |
| llama_cpp_f32.h5 | llama.cpp, KV cache in float32 | the same values, stored as float32 |
| llama_cpp.h5 | llama.cpp as people run it, KV cache in float16 | Q4_1, activations rounded to 8 bits |
"""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from gguf import GGUFReader, GGUFValueType, GGUFWriter
from recording import header
from tensortrace.tracer.architecture import build_graph
from tensortrace.tracer.gguf import Model
from tensortrace.tracer.record import Engine, Request, record
from tensortrace.tracer.selection import Selection
from tensortrace.tracer.trace import Trace

FOLDER = Path(__file__).parent / "golden"
PROMPT = (504, 3575, 282, 4649, 314, 7042)  # "The capital of France is Paris"
N_NEW = 3
SELECTION = Selection(
    layers="0,14,29",
    tensors="embd,q_rope,k_rope,v,scores,m,l,probs,attn,attn_out,resid_out,final_norm",
)

Weights = dict[str, np.ndarray]


def record_engine(engine: Engine, model: Model, path: Path, ids: Any = PROMPT, **request: Any) -> Trace:
    """Run any engine and open what it recorded; `request` as `record.Request` takes it."""
    settings = getattr(engine, "settings", {})
    record(engine, Request(list(ids), **request), path, header(model, **settings))
    return Trace(path)


def rewrite(
    source: Path, target: Path, change: Callable[[Weights], Mapping[str, np.ndarray]] = dict, name: str = ""
) -> Path:
    """A copy of a GGUF with all weights in float32, passed through `change`."""
    model, writer = Model(source), GGUFWriter(target, Model(source).arch)
    for field in GGUFReader(source).fields.values():
        kind, inner = field.types[0], field.types[-1]
        if not field.name.startswith(("GGUF.", "general.")):
            sub_type = inner if kind == GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), kind, sub_type=sub_type)
    writer.add_name(name or model.name)
    for tensor, values in change({tensor: model.weight(tensor) for tensor in model.names}).items():
        writer.add_tensor(tensor, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def make(source: Path) -> None:
    from tensortrace.tracer.engines import llama_cpp, torch

    model, graph = Model(source), build_graph(Model(source))
    with TemporaryDirectory() as folder:
        exact = Model(rewrite(source, Path(folder) / "f32.gguf"))
        engines = {
            "torch.h5": torch.Engine(graph, model),
            "llama_cpp_f32.h5": llama_cpp.Engine(graph, exact),
            "llama_cpp.h5": llama_cpp.Engine(graph, model, kv="f16"),
        }
        for name, engine in engines.items():
            path = FOLDER / name
            record_engine(engine, model, path, n_new=N_NEW, selection=SELECTION).close()
            print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    from tensortrace.tracer.hub import resolve

    make(resolve(sys.argv[1] if len(sys.argv) > 1 else None))
