"""Weights as engines load them: each mistake is made here by a decoder of our own, and must be named."""

from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.constants import GGML_QUANT_SIZES
from ggufs import write_gguf
from tensortrace.analyze.weight_check import check_all, check_weight
from tensortrace.analyze.weight_dump import read_dump
from tensortrace.tracer.errors import UserError
from tensortrace.tracer.gguf import Model

Q, K, V, DOWN = (f"blk.1.{name}.weight" for name in ("attn_q", "attn_k", "attn_v", "ffn_down"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    path = tmp_path_factory.mktemp("weights") / "q4_0.gguf"
    return Model(write_gguf(path, heads=4, kv_heads=2, head_dim=16, ff=96, qtype="Q4_0"))


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """As llama.cpp's converter does to Q and K of a llama: two halves of a head become neighbouring pairs."""
    rows = len(weight) // heads
    order = [head * rows + (i % 2) * rows // 2 + i // 2 for head in range(heads) for i in range(rows)]
    return weight[order]


def unpermuted(weight: np.ndarray, heads: int) -> np.ndarray:
    order = np.argsort(permuted(np.arange(len(weight))[:, None], heads)[:, 0])
    return weight[order]


WRONG: dict[str, Callable[[Model], tuple[str, np.ndarray]]] = {
    "equal": lambda m: (Q, m.weight(Q)),
    "transposed": lambda m: (DOWN, m.weight(DOWN).T),
    "heads_half_split": lambda m: (Q, unpermuted(m.weight(Q), 4)),
    "heads_interleaved": lambda m: (K, permuted(m.weight(K), 2)),
    "other_layer": lambda m: (Q, m.weight("blk.0.attn_q.weight")),
    "other_tensor": lambda m: (K, m.weight(V)),
    "plus_one": lambda m: ("output_norm.weight", m.weight("output_norm.weight") + 1),
    "minus_one": lambda m: ("output_norm.weight", m.weight("output_norm.weight") - 1),
    "scaled": lambda m: (V, m.weight(V) * 3),
    "zeros": lambda m: (V, np.zeros_like(m.weight(V))),
    "not_finite": lambda m: (V, m.weight(V) * np.nan),
    "unknown": lambda m: (V, np.random.default_rng(1).normal(size=m.shape(V))),
}


@pytest.mark.parametrize("kind", WRONG)
def test_mistakes_are_named(model: Model, kind: str) -> None:
    tensor, dump = WRONG[kind](model)
    found = check_weight(model, tensor, dump)
    assert found.kind == kind, found
    assert found.is_right == (kind == "equal")
    if kind not in ("equal", "unknown", "zeros", "not_finite"):
        assert found.explained < 1e-6 < found.nrmse
    # the first values tell as much, but for a change that begins behind them or a constant factor
    if kind not in ("scaled",):
        part = check_weight(model, tensor, dump.reshape(-1)[: 64 if dump.ndim == 1 else 200])
        assert part.kind == kind, part


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_rounding_is_no_mistake(model: Model, dtype: type) -> None:
    for change in (lambda w: w, lambda w: unpermuted(w, 4)):
        found = check_weight(model, Q, change(model.weight(Q)).astype(dtype))
        assert found.kind in ("equal", "heads_half_split")
    assert check_weight(model, Q, model.weight(Q).astype(dtype)).is_right


def test_a_shape_as_ggml_states_it(model: Model) -> None:
    found = check_weight(model, DOWN, model.weight(DOWN).reshape(96, 64))
    assert found.is_right
    assert "first axis fastest" in found.message


# ---- quantised blocks, decoded by scalar code from ggml's own (`ggml-quants.c`: dequantize_row_q4_0 …)


def half(block: bytes, at: int) -> float:
    return float(np.frombuffer(block[at : at + 2], np.float16)[0])


def legacy(block: bytes, *, first: int, zero: float, low_at: int | None, fault: str) -> list[float]:
    """Q4_0 and Q4_1: a scale, perhaps a minimum, 16 bytes of which the low nibbles come first."""
    scale = 1.0 if fault == "no_scale" else half(block, 0)
    low = 0.0 if low_at is None or fault == "no_min" else half(block, low_at)
    zero = 0.0 if fault == "no_zero_point" else zero
    values = [0.0] * 32
    for i in range(16):
        byte = block[first + i]
        nibbles = (byte >> 4, byte & 15) if fault == "nibbles_swapped" else (byte & 15, byte >> 4)
        places = (2 * i, 2 * i + 1) if fault == "nibbles_sequential" else (i, i + 16)
        for place, nibble in zip(places, nibbles, strict=True):
            values[place] = scale * (nibble - zero) + low
    return values


def q4_k(block: bytes, fault: str) -> list[float]:
    """Eight sub-blocks of 32 with 6-bit scales and minima."""
    scale = 1.0 if fault == "no_scale" else half(block, 0)
    low = 0.0 if fault == "no_min" else half(block, 2)
    packed = block[4:16]
    values = [0.0] * 256
    for group in range(4):
        for i in range(32):
            byte = block[16 + 32 * group + i]
            nibbles = (byte >> 4, byte & 15) if fault == "nibbles_swapped" else (byte & 15, byte >> 4)
            places = (2 * i, 2 * i + 1) if fault == "nibbles_sequential" else (i, i + 32)
            for offset, nibble in zip(places, nibbles, strict=True):
                sub = 2 * group + offset // 32
                if sub < 4:
                    s, m = packed[sub] & 63, packed[sub + 4] & 63
                else:
                    s = (packed[sub + 4] & 15) | (packed[sub - 4] >> 6) << 4
                    m = (packed[sub + 4] >> 4) | (packed[sub] >> 6) << 4
                values[64 * group + offset] = scale * s * nibble - low * m
    return values


DECODERS: dict[str, Callable[[bytes, str], list[float]]] = {
    "Q4_0": lambda block, fault: legacy(block, first=2, zero=8, low_at=None, fault=fault),
    "Q4_1": lambda block, fault: legacy(block, first=4, zero=0, low_at=2, fault=fault),
    "Q4_K": q4_k,
}
FAULTS = ("", "nibbles_sequential", "nibbles_swapped", "no_scale", "no_min", "no_zero_point")
POSSIBLE = [
    (qtype, fault)
    for qtype in DECODERS
    for fault in FAULTS
    if (fault != "no_zero_point" or qtype == "Q4_0") and (fault != "no_min" or qtype != "Q4_0")
]


def random_blocks(path: Path, qtype: str) -> tuple[Model, list[bytes]]:
    """A GGUF with one tensor of random blocks [8, 256]."""
    kind = GGMLQuantizationType[qtype]
    elements, size = GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(5)
    blocks = rng.integers(0, 256, (8 * 256 // elements, size), dtype=np.uint8)
    for at in (0,) if qtype == "Q4_0" else (0, 2):
        blocks[:, at : at + 2] = rng.uniform(0.01, 0.1, (len(blocks), 1)).astype(np.float16).view(np.uint8)
    writer = GGUFWriter(path, "llama")
    writer.add_tensor("blk.0.ffn_up.weight", blocks.reshape(8, -1), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Model(path), [bytes(block) for block in blocks]


@pytest.mark.parametrize(("qtype", "fault"), POSSIBLE)
def test_misread_blocks_are_named(tmp_path: Path, qtype: str, fault: str) -> None:
    model, blocks = random_blocks(tmp_path / "a.gguf", qtype)
    dump = np.array([value for block in blocks for value in DECODERS[qtype](block, fault)])
    for values in (dump, dump[:64]):
        found = check_weight(model, "blk.0.ffn_up.weight", values)
        assert found.kind == (fault or "equal"), found
        assert found.explained < 1e-6


def test_other_block_mistakes(tmp_path: Path) -> None:
    model, _ = random_blocks(tmp_path / "a.gguf", "Q4_1")
    weight = model.weight("blk.0.ffn_up.weight").reshape(-1, 32)
    scales = np.random.default_rng(2).uniform(1, 2, (len(weight), 1))
    found = check_weight(model, "blk.0.ffn_up.weight", weight * scales)
    assert found.kind == "rescaled"
    found = check_weight(model, "blk.0.ffn_up.weight", weight + scales)
    assert found.kind == "shifted"


# ---- files of weights


def test_names_of_the_checkpoint_and_none_at_all(model: Model, tmp_path: Path) -> None:
    arrays = {
        "model.layers.1.self_attn.q_proj.weight": unpermuted(model.weight(Q), 4),
        "model.layers.1.mlp.down_proj.weight": model.weight(DOWN),
        "blk.1.attn_v.weight": model.weight(V),
        "blk.1.attn_k": model.weight(K).astype(np.float16),
        "something": model.weight("blk.0.attn_v.weight"),
        "nothing": np.random.default_rng(3).normal(size=(64, 64)),
    }
    np.savez(tmp_path / "dump.npz", **arrays)
    found = {verdict.name: verdict for verdict in check_all(model, read_dump(tmp_path / "dump.npz"))}
    assert [verdict.kind for verdict in found.values()] == [
        *("heads_half_split", "equal", "equal", "equal", "equal", "unknown")
    ]
    assert found["something"].message == "equal to blk.0.attn_v.weight"
    assert found["nothing"].message == "is no tensor of this model"
    assert found["blk.1.attn_k"].to_json()["tensor"] == K
    (only,) = check_all(model, read_dump(tmp_path / "dump.npz"), Q)
    assert (only.name, only.kind) == ("model.layers.1.self_attn.q_proj.weight", "heads_half_split")


@pytest.mark.parametrize("suffix", [".npy", ".f32", ".bin", ".f16", ".txt"])
def test_files_of_one_weight(model: Model, tmp_path: Path, suffix: str) -> None:
    weight, path = model.weight(Q), tmp_path / f"q{suffix}"
    if suffix == ".npy":
        np.save(path, weight)
    elif suffix == ".txt":
        path.write_text("[" + ", ".join(f"{value:.6f}" for value in weight.ravel()[:12]) + ", ]")
    else:
        path.write_bytes(weight.astype(np.float16 if suffix == ".f16" else np.float32).tobytes())
    (found,) = check_all(model, read_dump(path), Q)
    assert found.is_right, found


def test_dumps_that_cannot_be_compared(model: Model, tmp_path: Path) -> None:
    for values in (np.ones(3), np.ones(64 * 64 + 1)):
        with pytest.raises(UserError, match=r"has 4096|the dump has"):
            check_weight(model, Q, values)
    with pytest.raises(UserError, match="no such file"):
        list(read_dump(tmp_path / "none.npy"))
    (tmp_path / "a.txt").write_text("not a weight")
    with pytest.raises(UserError, match="is no number"):
        list(read_dump(tmp_path / "a.txt"))
    with pytest.raises(UserError, match="holds no array"):
        check_all(model, [])
