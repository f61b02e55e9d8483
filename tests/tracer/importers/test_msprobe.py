"""msprobe's dump folders, in the layout of its `pytorch_data_dump_instruct.md`."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dumps import import_and_compare, refused, tensors
from tensortrace.tracer.axes import Heads
from tensortrace.tracer.importer import Options, choose, import_dump
from tensortrace.tracer.names import Key
from tensortrace.tracer.trace import Trace

MODULES = {
    "embd": "model.embed_tokens.Embedding",
    "attn_norm": "model.layers.{}.input_layernorm.LlamaRMSNorm",
    "q": "model.layers.{}.self_attn.q_proj.Linear",
    "v": "model.layers.{}.self_attn.v_proj.Linear",
    "attn_out": "model.layers.{}.self_attn.o_proj.Linear",
    "logits": "lm_head.Linear",
}


def folder_of(root: Path, step: int, rank: str = "rank0") -> Path:
    folder = root / f"step{step}" / rank / "dump_tensor_data"
    folder.mkdir(parents=True, exist_ok=True)
    (folder.parent / "dump.json").write_text('{"task": "tensor", "level": "L0"}')
    return folder


def test_a_run(record_tiny: Callable[..., Trace], tmp_path: Path) -> None:
    run = record_tiny(n_new=3)
    for step, key, values in tensors(run):
        folder = folder_of(tmp_path / "dump", step)
        if key.name in ("scores", "m"):  # L1: calls of the API
            name = {"scores": "scores", "m": "m"}[key.name]
            np.save(folder / f"Module.model.layers.{key.layer}.{name}.Hook.forward.0.output.0.npy", values)
            continue
        module = MODULES[key.name].format(key.layer)
        batch = values.reshape(1, len(values), -1)
        np.save(folder / f"Module.{module}.forward.0.output.0.npy", batch)
        np.save(folder / f"Module.{module}.forward.0.input.0.npy", batch + 1)
        np.save(folder / f"Module.{module}.forward.0.parameters.weight.npy", batch)
        np.save(folder / f"Module.{module}.backward.0.output.0.npy", batch)
    for folder in (tmp_path / "dump").rglob("dump_tensor_data"):
        for path in folder.glob("*.o_proj.*.input.0.npy"):
            path.unlink()
    imported = import_and_compare(tmp_path / "dump", run, heads=Heads(4, 2))
    assert choose(tmp_path / "dump", Options()).FORMAT == "msprobe"
    assert imported.header.engine == "msprobe"


def test_calls_inputs_and_apis(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "dump", 0, "proc123")
    for name, value in {
        "Module.model.layers.0.mlp.down_proj.Linear.forward.0.input.0": 1,
        "Module.model.layers.0.mlp.down_proj.Linear.forward.0.output.0": 2,
        "Module.model.layers.0.mlp.down_proj.Linear.forward.1.output.0": 3,
        "Functional.linear.5.forward.output.0": 4,
        "Functional.linear.5.forward.input.0": 5,
    }.items():
        np.save(folder / f"{name}.npy", np.full((1, 2, 8), value))
    done = import_dump(tmp_path / "dump", tmp_path / "a.h5", Options())
    assert done.notes == ("left out 1 inputs, parameters and gradients",)
    with Trace(tmp_path / "a.h5") as trace:
        found = {str(key): trace.read(key, 0).flat[0] for key in trace.tensors}
    assert found == {"L00 act": 1, "L00 ffn_out": 2, "L00 ffn_out#2": 3, "Functional.linear.5": 4}


def test_ranks(tmp_path: Path) -> None:
    for rank in range(2):
        np.save(
            folder_of(tmp_path / "dump", 0, f"rank{rank}") / "Module.lm_head.Linear.forward.0.output.0.npy",
            np.full((2, 8), rank),
        )
    refused(tmp_path / "dump", "of 2 ranks")
    import_dump(tmp_path / "dump", tmp_path / "a.h5", Options(rank=1))
    assert (Trace(tmp_path / "a.h5").read(Key(None, "logits"), 0) == 1).all()


def test_a_dump_of_statistics_has_no_values(tmp_path: Path) -> None:
    folder_of(tmp_path / "dump", 0)
    refused(tmp_path / "dump", "was the task `tensor`")


@pytest.mark.torch
def test_torch_files(tmp_path: Path) -> None:
    import torch

    path = folder_of(tmp_path / "dump", 0) / "Module.model.norm.RMSNorm.forward.0.output.0.pt"
    torch.save(torch.ones(1, 3, 8, dtype=torch.bfloat16), path)
    import_dump(tmp_path / "dump", tmp_path / "a.h5", Options())
    assert Trace(tmp_path / "a.h5").tensors[Key(None, "final_norm")].dtype == "bfloat16"
