import struct
from pathlib import Path

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.quants import dequantize
from ggufs import vocabulary, write_gguf
from hypothesis import given, settings
from hypothesis import strategies as st
from tensortrace.tracer import gguf
from tensortrace.tracer.errors import ModelError
from tensortrace.tracer.gguf import Model

PLAIN = {"F32", "F16", "F64", "I8", "I16", "I32", "I64"}
NOT_DEQUANTISED = {"Q8_1", "Q8_K", "Q1_0"}
pytestmark = pytest.mark.filterwarnings("error")
DOWN = "blk.0.ffn_down.weight"


def write_tensors(path: Path, **tensors: tuple[str, np.ndarray]) -> Path:
    """A GGUF that holds the given (type, values or bytes) and a key of every kind."""
    writer = GGUFWriter(path, "llama")
    numbers = {"uint8": 200, "int8": -3, "int16": -300, "uint64": 2**63, "float32": 0.1, "float64": 0.1}
    for kind, value in {**numbers, "bool": True, "string": "zwölf\nLinien"}.items():
        getattr(writer, f"add_{kind}")(f"k.{kind}", value)
    for key, values in {"texts": ["a", "", "ü"], "numbers": [1, -2, 3], "flags": [True, False]}.items():
        writer.add_array(f"k.{key}", values)
    for name, (kind, values) in tensors.items():
        writer.add_tensor(name, values, raw_dtype=None if kind in PLAIN else GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def header(tensors: int = 0, keys: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys)


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


ARCH = text(b"general.architecture") + struct.pack("<I", 8) + text(b"llama")


def tensor(name: bytes, sizes: tuple[int, ...], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset)


def refusal(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        Model(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def half(two_bytes: bytes) -> float:
    return struct.unpack("<e", two_bytes)[0]


def decode_by_hand(kind: str, block: bytes) -> list[float]:
    """One block as ggml's block_q4_0, block_q4_1 and block_q8_0 define it; low nibbles are the first half."""
    if kind == "Q8_0":
        return [half(block[:2]) * value for value in struct.unpack("<32b", block[2:])]
    nibbles = [byte & 15 for byte in block[-16:]] + [byte >> 4 for byte in block[-16:]]
    if kind == "Q4_0":
        return [half(block[:2]) * (nibble - 8) for nibble in nibbles]
    return [half(block[:2]) * nibble + half(block[2:4]) for nibble in nibbles]


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
def test_blocks_decode_as_ggml_defines_them(tmp_path, kind):
    model = Model(write_gguf(tmp_path / "m.gguf", qtype=kind))
    size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]][1]
    raw = model.raw(DOWN)[5].tobytes()
    by_hand = [x for at in range(0, len(raw), size) for x in decode_by_hand(kind, raw[at : at + size])]
    assert model.tensor_type(DOWN) == kind
    assert model.weight(DOWN).shape == model.shape(DOWN) == (64, 96)
    np.testing.assert_allclose(model.weight(DOWN)[5], by_hand, rtol=1e-6)


@pytest.mark.parametrize("kind", sorted(kind.name for kind in GGMLQuantizationType if kind.name not in PLAIN))
def test_every_quantisation_type(tmp_path, kind, monkeypatch):
    number = GGMLQuantizationType[kind]
    block, size = GGML_QUANT_SIZES[number]
    monkeypatch.setattr(gguf, "_CHUNK", 4 * block)  # so that the rows are cut in several places
    data = np.random.default_rng(1).integers(0, 256, (5, 3 * size), dtype=np.uint8)
    model = Model(write_tensors(tmp_path / "m.gguf", w=(kind, data)))
    np.testing.assert_array_equal(model.raw("w"), data)
    if kind in NOT_DEQUANTISED:
        with pytest.raises(ModelError, match=f"tensor w is {kind}; supported are F32, F16, Q4_0,.* BF16"):
            model.weight("w")
        return
    values = model.weight("w")
    assert values.shape == (5, 3 * block)
    assert not values.flags.writeable
    with np.errstate(all="ignore"):  # among random bytes there are scales that are infinite or NaN
        np.testing.assert_array_equal(values, dequantize(data, number))
    np.testing.assert_array_equal(model.rows("w", [[4, 0], [4, 1]]), values[[[4, 0], [4, 1]]])


@pytest.mark.parametrize("dtype", ["f4", "f2", "f8", "i1", "i2", "i4", "i8"])
def test_plain_types_are_views_of_the_file(tmp_path, dtype):
    data = np.arange(-6, 6).reshape(3, 4).astype(dtype)
    model = Model(write_tensors(tmp_path / "m.gguf", w=("F32", data)))
    same = model.weight("w", dtype)
    assert np.shares_memory(same, model.raw("w"))
    assert same.dtype == data.dtype
    assert not same.flags.writeable
    np.testing.assert_array_equal(same, data)
    assert model.weight("w").dtype == np.float32
    np.testing.assert_array_equal(model.weight("w"), data.astype(np.float32))


def test_agrees_with_gguf_reader(tmp_path):
    data = np.ones((2, 64), np.float32)
    for path in (
        write_gguf(tmp_path / "a.gguf", qtype="Q4_0", bias=True),
        write_gguf(
            tmp_path / "b.gguf", "gemma3", tied=True, qtype="BF16", embd=128, head_dim=32, qk_norm=True
        ),
        write_tensors(
            tmp_path / "c.gguf",
            w=("F32", data),
            one=("F32", data[0]),
            four=("F32", data.reshape(2, 2, 2, 16)),
        ),
    ):
        model, reader = Model(path), GGUFReader(path)
        fields = {k: f.contents() for k, f in reader.fields.items() if not k.startswith("GGUF.")}
        assert model.metadata == fields
        assert model.names == tuple(entry.name for entry in reader.tensors)
        for entry in reader.tensors:
            assert model.tensor_type(entry.name) == entry.tensor_type.name
            assert model.shape(entry.name) == tuple(reversed(entry.shape.tolist()))
            assert model.raw(entry.name).dtype == entry.data.dtype
            np.testing.assert_array_equal(model.raw(entry.name), entry.data)


def test_metadata_and_hyperparameters(tmp_path):
    model = Model(write_gguf(tmp_path / "m.gguf", layers=3, rope_base=5e5, metadata={"attention.scale": 0.5}))
    assert (model.arch, model.name) == ("llama", "random llama")
    assert model.metadata["tokenizer.ggml.tokens"] == vocabulary()
    assert model.hparam("block_count") == 3
    assert model.hparam("rope.freq_base") == 5e5
    assert model.hparam("attention.scale", 1.0) == 0.5
    assert model.hparam("nothing", None) is None
    assert "blk.2.attn_q.weight" in model
    assert "blk.3.attn_q.weight" not in model
    with pytest.raises(ModelError, match=r"has no metadata key llama\.nothing"):
        model.hparam("nothing")
    with pytest.raises(ModelError, match=r"has no tensor output\.weigth \(is output\.weight meant\?\)"):
        model.weight("output.weigth")


def test_rows_are_checked(tmp_path):
    model = Model(write_gguf(tmp_path / "m.gguf", qtype="Q8_0"))
    assert model.rows("token_embd.weight", []).shape == (0, 64)
    for ids in ([300], [-1], [0, 2**40]):
        with pytest.raises(ModelError, match=r"token_embd\.weight has rows 0 to 299; asked for"):
            model.rows("token_embd.weight", ids)


@pytest.mark.parametrize("qtype", ["F32", "F16", "Q8_0"])
def test_a_part_of_a_tensor_by_its_rows(tmp_path, qtype):
    model = Model(write_gguf(tmp_path / "m.gguf", qtype=qtype, bias=True))
    for name in ("blk.0.attn_q.weight", "blk.0.attn_q.bias"):
        part, whole = f"{name}[16:48]", model.weight(name)
        assert part in model
        assert model.shape(part) == (32, *whole.shape[1:])
        assert model.tensor_type(part) == model.tensor_type(name)
        assert np.array_equal(model.raw(part), model.raw(name)[16:48])
        for dtype in (np.float32, np.float64):
            assert np.array_equal(model.weight(part, dtype), whole[16:48])
    assert "blk.0.attn_qkv.weight[0:4]" not in model
    for rows in ("[0:65]", "[5:5]"):
        with pytest.raises(ModelError, match="has rows 0 to 63; asked for"):
            model.weight("blk.0.attn_q.weight" + rows)


def test_weights_are_kept_within_the_budget(tmp_path):
    path, size = write_gguf(tmp_path / "m.gguf", qtype="Q8_0"), 64 * 96 * 4
    up, gate, down = (f"blk.0.ffn_{name}.weight" for name in ("up", "gate", "down"))

    model = Model(path, memory=2 * size)
    first = model.weight(up)
    model.weight(gate)
    assert model.weight(up) is first  # and is now the most recently used
    model.weight(down)
    assert model.weight(up) is first
    assert model.weight(gate) is not None
    assert sum(array.nbytes for array in model._cache.values()) == 2 * size

    small = Model(path, memory=size - 1)  # too little for even one
    assert small.weight(up) is not small.weight(up)
    np.testing.assert_array_equal(small.weight(up), first)
    small.weight("output_norm.weight")  # a view costs nothing
    assert not small._cache


def test_tokens_that_are_not_utf8_stay_apart(tmp_path):
    tokens = struct.pack("<IIQ", 9, 8, 2) + text(b"\xff") + text(b"\xfe")
    (tmp_path / "m.gguf").write_bytes(header(keys=2) + ARCH + text(b"tokens") + tokens)
    assert Model(tmp_path / "m.gguf").metadata["tokens"] == ["\\xff", "\\xfe"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "is an HDF5 file: a trace, not a model"),
        (b"PK\x03\x04" + bytes(100), "zip archive"),
        (struct.pack("<Q", 8) + b"{}      " + bytes(8), "safetensors"),
        (b"\x80\x02ctorch", "pickle"),
        (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        (b"<!DOCTYPE html>", "web page"),
        (b"GG", "is not a GGUF file"),
        (b"GGUF", "cut short"),
        (header(version=1), "version 1; versions 2 and 3 can be read"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "gguf-convert-endian"),
        (header(), "does not name its architecture"),
        (header(keys=2**64 - 1), "cut short"),
        (header(tensors=2**64 - 1, keys=1) + ARCH, "cut short"),
        (header(keys=1) + struct.pack("<Q", 2**64 - 1) + b"abc", "cut short"),
        (header(keys=2) + ARCH * 2, "'general.architecture' comes twice"),
        (header(keys=1) + text(b"k") + struct.pack("<I", 13), "unknown type 13"),
        (header(keys=1) + text(b"k") + struct.pack("<IIQ", 9, 9, 1), "unknown type 9"),
        (header(keys=1) + text(b"k") + struct.pack("<IIQ", 9, 0, 2**64 - 1), "an array of 18,446,744"),
        (header(keys=1) + text(b"k") + struct.pack("<IIQ", 9, 8, 10**6), "cut short"),
        (header(keys=2) + ARCH + text(b"general.alignment") + struct.pack("<II", 4, 24), "power of two"),
        (header(keys=2) + ARCH + text(b"split.count") + struct.pack("<IH", 2, 3), "one of 3 parts"),
    ],
)
def test_files_that_are_no_model(tmp_path, content, said):
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    assert said in refusal(path)


@pytest.mark.parametrize(
    ("infos", "said"),
    [
        ([tensor(b"a", (8,), 0, 0)] * 2, "'a' comes twice"),
        ([tensor(b"a", (), 0, 0)], "claims 0 axes"),
        ([tensor(b"a", (0, 8), 0, 0)], "has shape (8, 0)"),
        ([tensor(b"a", (31,), 3, 0)], "has shape (31,); Q4_1 comes in blocks of 32"),
        ([tensor(b"a", (8,), 31, 0)], "of type 31"),
        ([tensor(b"a", (2**63, 2**63), 0, 0)], "'a' runs to byte"),
        ([tensor(b"a", (8,), 0, 2**63)], "'a' runs to byte"),
        ([tensor(b"a", (8,), 0, 1)], "'a' is misaligned"),
        ([tensor(b"a", (16,), 0, 0), tensor(b"b", (8,), 0, 32)], "'b' is misaligned or overlaps another"),
        ([tensor(b"a\nb\x1b" + b"x" * 200, (8,), 31, 0)], "has tensor 'a\\nb\\x1bxxx"),
    ],
)
def test_tensors_that_cannot_be(tmp_path, infos, said):
    path = tmp_path / "m.gguf"
    path.write_bytes(header(tensors=len(infos), keys=1) + ARCH + b"".join(infos) + bytes(256))
    message = refusal(path)
    assert said in message
    assert len(message) < len(str(path)) + 200


def test_paths_that_are_no_file(tmp_path):
    assert "does not exist" in refusal(tmp_path / "none.gguf")
    assert "is not a regular file" in refusal(tmp_path)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> tuple[Path, bytes]:
    """A path to spoil, and the bytes of a whole model: a quantised, a plain and a one-dimensional tensor."""
    path = tmp_path_factory.mktemp("small") / "m.gguf"
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (2, 40), dtype=np.uint8)
    write_tensors(path, a=("Q4_1", blocks), b=("F16", blocks.view("f2")), c=("F32", np.ones(3, np.float32)))
    return path, path.read_bytes()


def open_spoiled(path: Path, content: bytes) -> bool:
    """Whether the model opens, in which case all of it must be readable; only ModelError may say no."""
    path.unlink(missing_ok=True)  # a new file: the old one may still be mapped
    path.write_bytes(content)
    try:
        model = Model(path)
        for name in model.names:
            model.weight(name)
    except ModelError as error:
        message = str(error)
    else:
        message = ""
    assert "\n" not in message
    return not message


def test_cut_at_any_byte(small):
    path, whole = small
    last = Model(path)
    end = max(last._start + entry.offset + entry.size for entry in last._tensors.values())
    opened = [size for size in range(len(whole) + 1) if open_spoiled(path, whole[:size])]
    assert opened == list(range(end, len(whole) + 1))


@settings(max_examples=400, deadline=2000)
@given(st.data())
def test_flipped_bytes(small, data):
    path, whole = small
    spoiled = bytearray(whole)
    places = st.integers(0, len(whole) - 1)
    for at in data.draw(st.lists(places, min_size=1, max_size=4), label="places"):
        spoiled[at] = data.draw(
            st.sampled_from((0, 1, 8, 9, 127, 128, 255)) | st.integers(0, 255), label="byte"
        )
    cut = data.draw(st.none() | places, label="cut")
    open_spoiled(path, bytes(spoiled[:cut]))
