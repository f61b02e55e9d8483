"""SGLang's two dumpers, as `python/sglang/srt/debug_utils` writes them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dumps import import_and_compare, refused, tensors
from tensortrace.tracer.axes import Heads
from tensortrace.tracer.importer import Options, choose, import_dump
from tensortrace.tracer.names import Key
from tensortrace.tracer.trace import Trace

pytestmark = pytest.mark.torch


def test_a_file_for_each_tensor(record_tiny: Callable[..., Trace], tmp_path: Path) -> None:
    import torch

    run = record_tiny(n_new=3)
    folder = tmp_path / "dumps" / "dump_20260301_101112_123456"
    folder.mkdir(parents=True)
    items = [(step, key.name, key.layer, values) for step, key, values in tensors(run)]
    for step in run.steps:
        ids = run.tokens[step.start : step.kv_len]
        items += [(step.index, "input_ids", None, ids), (step.index, "positions", None, run.rows(step.index))]
        items += [(step.index, "seq_lens", None, np.array([step.kv_len]))]
        items += [(step.index, "grad__q", 0, np.ones(3)), (step.index, "note", None, None)]
    for index, (step, name, layer, values) in enumerate(items):
        value = "no tensor" if values is None else torch.from_numpy(np.array(values))
        tags = {
            "step": step,
            "rank": 0,
            "dump_index": index + 1,
            "name": name,
            "recompute_status": "disabled",
        }
        tags |= {} if layer is None else {"layer_id": layer}
        content = {"value": value, "meta": {**tags, "world_size": 1}}
        torch.save(content, folder / ("___".join(f"{k}={v}" for k, v in tags.items()) + ".pt"))
    imported = import_and_compare(tmp_path / "dumps", run, heads=Heads(4, 2))
    assert choose(tmp_path / "dumps", Options()).FORMAT == "sglang"
    assert imported.header.engine == "sglang"
    assert list(imported.tokens) == list(run.tokens)


def test_earlier_versions_and_ranks(tmp_path: Path) -> None:
    import torch

    for rank in range(2):
        name = f"forward_pass_id=3___rank={rank}___name=layer_start__hidden_states___layer_id=7.pt"
        torch.save(torch.full((2, 8), float(rank)), tmp_path / name)
    refused(tmp_path, "of 2 ranks")
    refused(tmp_path, "has no rank 5", rank=5)
    import_dump(tmp_path, tmp_path / "a.h5", Options(rank=1))
    with Trace(tmp_path / "a.h5") as trace:
        assert (trace.read(Key(7, "layer_start__hidden_states"), 0) == 1).all()


def test_a_file_for_each_pass(tmp_path: Path) -> None:
    """What comes behind `model` is in the file of the next pass; fused norms give their residual, too."""
    import torch

    folder = tmp_path / "TP0_PP0_Rank0_pid4242"
    folder.mkdir()
    for number, (start, rows) in enumerate(((0, 3), (3, 1), (4, 1))):
        positions = torch.arange(start, start + rows)
        content: dict = {} if number == 0 else {"logits_processor": torch.full((1, 50), float(number - 1))}
        content |= {
            "model.embed_tokens": torch.full((rows, 8), float(number)),
            "model.layers.0.input_layernorm": [torch.ones(rows, 8), torch.zeros(rows, 8)],
            "model.layers.0.self_attn.qkv_proj": torch.ones(rows, 64),
            "model.layers.0.self_attn.attn": torch.ones(rows, 32),
            "model.forward_batch_info.input_ids": positions + 100,
            "model.forward_batch_info.positions": positions,
            "model.forward_batch_info.seq_lens": torch.tensor([start + rows]),
        }
        torch.save(content, folder / f"Pass{number:05d}.pt")
    done = import_dump(tmp_path, tmp_path / "a.h5", Options(heads=Heads(4, 2)))
    assert done.own_names == ("input_layernorm.1", "self_attn.qkv_proj")
    with Trace(tmp_path / "a.h5") as trace:
        assert [(step.start, step.n_tokens) for step in trace.steps] == [(0, 3), (3, 1), (4, 1)]
        assert list(trace.tokens) == [100, 101, 102, 103, 104]
        assert trace.read(Key(0, "attn"), 0).shape == (3, 4, 8)
        assert (trace.read(Key(0, "attn_norm"), 0) == 1).all()
        assert trace.read(Key(None, "logits"), 0)[2].tolist() == [0.0] * 50
        assert trace.read(Key(None, "logits"), 1).tolist() == [[1.0] * 50]
        assert not trace.has(Key(None, "logits"), 2)


def test_a_batch_of_sequences_is_refused(tmp_path: Path) -> None:
    import torch

    folder = tmp_path / "TP0_PP0_Rank0_pid1"
    folder.mkdir()
    content = {
        "model.embed_tokens": torch.ones(4, 8),
        "model.forward_batch_info.positions": torch.tensor([0, 1, 0, 1]),
    }
    torch.save(content, folder / "Pass00000.pt")
    refused(tmp_path, "several sequences at once")
