"""Small GGUF models with random weights: llama's layout, and those that differ from it by a few tensors."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from gguf.quants import quantize
from numpy.typing import NDArray

Weights = dict[str, NDArray[np.float32]]

PAIRS = """
    Ġ+t h+e i+n Ġt+he a+n e+r o+n r+e Ġ+a Ġ+s Ġ+w Ġ+c Ġ+o Ġ+f Ġ+b Ġ+m Ġ+p o+r e+n a+t e+s e+d i+s i+t o+u
    a+l l+l in+g an+d Ġ+and Ġo+f Ġ+in Ġt+o l+e a+r o+m Ġ+is n+d t+h th+at a+s
"""
MERGES = [pair.replace("+", " ") for pair in PAIRS.split()]
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_symbols() -> list[str]:
    """The character that GPT-2's byte-level vocabulary uses for each byte: itself where it is printable."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def vocabulary() -> list[str]:
    """300 tokens: the bytes, what the merges make, and the special tokens last."""
    merged = dict.fromkeys(merge.replace(" ", "") for merge in MERGES)
    return [*byte_symbols(), *merged, *SPECIALS]


def write_gguf(
    path: Path,
    arch: str = "llama",
    *,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 16,
    embd: int | None = None,
    ff: int = 96,
    rope_base: float = 10000.0,
    eps: float = 1e-5,
    bias: bool = False,
    qk_norm: bool = False,
    post_norms: bool = False,
    tied: bool = False,
    tokenizer: bool = True,
    seed: int = 0,
    qtype: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    tensors: Mapping[str, NDArray[np.float32]] | None = None,
    change: Callable[[Weights], Weights] = lambda weights: weights,
) -> Path:
    """Writes a model that engines can run and returns its path.

    `embd` is the model's width (default heads * head_dim); `qtype` (such as "Q8_0", "F16") is for the
    matrices, whose rows must be whole blocks, while norms and biases stay F32 as in released files; `bias`
    is for Q, K and V; `tied` leaves `output.weight` out. `metadata` and `tensors` are added last and may
    replace what is here (keys of the architecture without its prefix: "attention.scale"); `change` has the
    last word on the weights.
    """
    width = embd or heads * head_dim
    tokens = vocabulary()
    matrices = {"token_embd.weight": (len(tokens), width)}
    if not tied:
        matrices["output.weight"] = (len(tokens), width)
    vectors = {"output_norm.weight": width}
    for layer in range(layers):
        block = f"blk.{layer}."
        matrices |= {
            f"{block}attn_q.weight": (heads * head_dim, width),
            f"{block}attn_k.weight": (kv_heads * head_dim, width),
            f"{block}attn_v.weight": (kv_heads * head_dim, width),
            f"{block}attn_output.weight": (width, heads * head_dim),
            f"{block}ffn_gate.weight": (ff, width),
            f"{block}ffn_up.weight": (ff, width),
            f"{block}ffn_down.weight": (width, ff),
        }
        vectors |= {f"{block}attn_norm.weight": width, f"{block}ffn_norm.weight": width}
        if qk_norm:
            vectors |= {f"{block}attn_q_norm.weight": head_dim, f"{block}attn_k_norm.weight": head_dim}
        if post_norms:
            vectors |= {f"{block}post_attention_norm.weight": width, f"{block}post_ffw_norm.weight": width}
        if bias:
            vectors |= {f"{block}attn_q.bias": heads * head_dim}
            vectors |= {f"{block}attn_{name}.bias": kv_heads * head_dim for name in "kv"}

    rng = np.random.default_rng(seed)
    weights = {name: rng.normal(0, shape[1] ** -0.5, shape) for name, shape in matrices.items()}
    weights["token_embd.weight"] *= width**0.5  # rows of unit variance, as the first norm expects
    for name, size in vectors.items():
        weights[name] = rng.normal(0.0 if name.endswith("bias") else 1.0, 0.2, size)
    weights = {name: values.astype(np.float32) for name, values in {**weights, **(tensors or {})}.items()}
    weights = change(weights)

    keys = {
        "vocab_size": len(tokens),
        "context_length": 512,
        "embedding_length": width,
        "block_count": layers,
        "feed_forward_length": ff,
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "attention.layer_norm_rms_epsilon": eps,
        "rope.dimension_count": head_dim,
        "rope.freq_base": rope_base,
    }
    writer = GGUFWriter(path, arch)
    # llama.cpp expects certain tokens of a model with phi3 in its name
    writer.add_name(f"random {arch}".replace("phi3", "phi"))
    for key, value in {**keys, **(metadata or {})}.items():
        _add(writer, f"{arch}.{key}", value)
    if tokenizer:
        _add_tokenizer(writer, tokens)
    for name, values in weights.items():
        _add_tensor(writer, name, np.ascontiguousarray(values), qtype if values.ndim > 1 else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    adders = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
    }
    adders.get(type(value), writer.add_array)(key, value)


def _add_tensor(writer: GGUFWriter, name: str, values: NDArray[np.float32], qtype: str | None) -> None:
    kind = GGMLQuantizationType[qtype or "F32"]
    plain = kind in (GGMLQuantizationType.F32, GGMLQuantizationType.F16)
    writer.add_tensor(name, quantize(values, kind), raw_dtype=None if plain else kind)


def _add_tokenizer(writer: GGUFWriter, tokens: list[str]) -> None:
    kinds = [TokenType.CONTROL if token in SPECIALS else TokenType.NORMAL for token in tokens]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(tokens.index("<|endoftext|>"))
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)
