"""ggml's graph nodes as llama-cpp-python's shared libraries hold them, and which of them are our tensors.

`struct ggml_tensor` (ggml's `include/ggml.h`) is read through ctypes, so its layout is checked against the
installed library before anything else is read.  `sizes` are ggml's, fastest axis first.
"""

import ctypes
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any

import ml_dtypes
import numpy as np
from gguf.constants import GGMLQuantizationType as Kind

from .errors import UserError
from .gguf import Model
from .names import Key
from .translate import BY_WEIGHT

_DTYPES: dict[int, Any] = {Kind.F32: np.float32, Kind.F16: np.float16, Kind.BF16: ml_dtypes.bfloat16}
_DTYPES |= {Kind.I8: np.int8, Kind.I16: np.int16, Kind.I32: np.int32, Kind.I64: np.int64}
_SHOWS = ("VIEW", "RESHAPE", "PERMUTE", "TRANSPOSE")  # ops that show another node's numbers
_GATED = ("SWIGLU", "GEGLU", "REGLU", "GEGLU_ERF", "GEGLU_QUICK", "SWIGLU_OAI")


class Tensor(ctypes.Structure):
    """struct ggml_tensor."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
        ("extra", ctypes.c_void_p),
        ("padding", ctypes.c_char * 8),
    )


class _InitParams(ctypes.Structure):
    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


_P, _SIZE = ctypes.c_void_p, ctypes.c_size_t
_SIGNATURES: dict[str, tuple[Any, ...]] = {  # result, then arguments
    "ggml_version": (ctypes.c_char_p,),
    "ggml_op_desc": (ctypes.c_char_p, _P),
    "ggml_nbytes": (_SIZE, _P),
    "ggml_tensor_overhead": (_SIZE,),
    "ggml_init": (_P, _InitParams),
    "ggml_free": (None, _P),
    "ggml_new_tensor_3d": (_P, _P, ctypes.c_int, *[ctypes.c_int64] * 3),
    "ggml_set_name": (_P, _P, ctypes.c_char_p),
    "ggml_scale": (_P, _P, _P, ctypes.c_float),
    "ggml_permute": (_P, _P, _P, *[ctypes.c_int] * 4),
    "ggml_backend_buffer_is_host": (ctypes.c_bool, _P),
    "ggml_backend_tensor_get": (None, _P, _P, _SIZE, _SIZE),
}
_OBJECT_BYTES = 32  # ggml's bookkeeping in front of every tensor


class Ggml:
    """The functions of a ggml library that reading graph nodes takes."""

    def __init__(self, library: ctypes.CDLL):
        for name, (result, *arguments) in _SIGNATURES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
        self._lib = library
        self.version: str = library.ggml_version().decode()
        if not self._layout_fits():
            raise UserError(
                f"ggml {self.version} lays out its tensors in a way that this program does not know: "
                "pip install llama-cpp-python==0.3.36"
            )

    def _layout_fits(self) -> bool:
        """Whether what the library sets in three small tensors is found where `Tensor` has it."""
        lib, memory = self._lib, ctypes.create_string_buffer(1 << 14)
        context = lib.ggml_init(_InitParams(len(memory), ctypes.addressof(memory), True))
        base = lib.ggml_new_tensor_3d(context, Kind.F16, 2, 3, 5)
        lib.ggml_set_name(base, b"base")
        scale = lib.ggml_scale(context, base, 0.5)
        plain, scaled = Tensor.from_address(base), Tensor.from_address(scale)
        turned = Tensor.from_address(lib.ggml_permute(context, base, 0, 2, 1, 3))
        fits = (
            lib.ggml_tensor_overhead() == ctypes.sizeof(Tensor) + _OBJECT_BYTES
            and (plain.type, plain.name, plain.data) == (Kind.F16, b"base", None)
            and (plain.ne[:], plain.nb[:]) == ([2, 3, 5, 1], [2, 4, 12, 60])
            and (turned.ne[:], turned.nb[:]) == ([2, 5, 3, 1], [2, 12, 4, 60])
            and (turned.src[0], turned.view_src, turned.view_offs) == (base, base, 0)
            and (scaled.src[:2], scaled.view_src) == ([base, None], None)
            and (_floats(scaled.op_params)[0], self.op(scale)) == (0.5, "SCALE")
        )
        lib.ggml_free(context)
        return fits

    def op(self, address: int) -> str:
        """What a node computes, as MUL_MAT or SWIGLU."""
        return self._lib.ggml_op_desc(address).decode()

    def view(self, address: int) -> np.ndarray:
        """A node's values, slowest axis first, with ggml's strides.

        In host memory this is ggml's own memory, which later nodes overwrite; from a device it is a copy.
        """
        tensor = Tensor.from_address(address)
        if tensor.type not in _DTYPES:
            raise UserError(f"llama.cpp keeps {tensor.name.decode()} in ggml type {tensor.type}: unreadable")
        size = self._lib.ggml_nbytes(address)
        raw: Any  # a ctypes array, which NumPy takes for a buffer
        if self._lib.ggml_backend_buffer_is_host(tensor.buffer):
            raw = (ctypes.c_char * size).from_address(tensor.data)
        else:
            raw = (ctypes.c_char * size)()
            self._lib.ggml_backend_tensor_get(address, raw, 0, size)
        return np.ndarray(tensor.ne[::-1], _DTYPES[tensor.type], raw, 0, tensor.nb[::-1])


def _floats(params: Sequence[int]) -> np.ndarray:
    """The parameters of an op, which ggml keeps as 32-bit words, read as float32."""
    return np.array(params, np.int32).view(np.float32)


@dataclass(frozen=True, eq=False)
class Node:
    """A node of a graph or, at index -1, a leaf of it: a weight, an input, a cache."""

    index: int
    name: str
    op: str
    kind: int  # ggml type
    sizes: tuple[int, ...]
    params: tuple[int, ...]
    sources: tuple["Node", ...]

    @cached_property
    def title(self) -> tuple[str, int | None]:
        """llama.cpp's name and layer: `Qcur-3` is (Qcur, 3)."""
        match = re.fullmatch(r"(.+)-(\d+)", self.name)
        return (match[1], int(match[2])) if match else (self.name, None)

    @property
    def base(self) -> "Node":
        """The node that computed the numbers that this one shows."""
        return self.sources[0].base if self.op in _SHOWS and self.sources else self

    @property
    def product(self) -> "Node | None":
        """The matrix product behind this node, through a bias that was added to it."""
        if self.op == "ADD" and self.sources[1].name.endswith(".bias"):
            return self.sources[0].product
        return self if self.op == "MUL_MAT" else None

    def number(self, index: int) -> float:
        """Parameter `index` as a floating-point number, in its shortest decimal form."""
        return float(str(_floats(self.params)[index]))


def read_nodes(ggml: Ggml, addresses: Iterable[int]) -> list[Node]:
    """Copies of a graph's nodes, given in the order of execution."""
    known: dict[int, Node] = {}
    return [_read(ggml, address, index, known) for index, address in enumerate(addresses)]


def _read(ggml: Ggml, address: int, index: int, known: dict[int, Node]) -> Node:
    """The node at `address`; what it reads is either known already or a leaf (index -1)."""
    tensor = Tensor.from_address(address)
    sources = (source for source in tensor.src if source and index >= 0)
    known[address] = Node(
        index,
        tensor.name.decode(errors="replace"),
        ggml.op(address),
        tensor.type,
        tuple(tensor.ne),
        tuple(tensor.op_params),
        tuple(known.get(source) or _read(ggml, source, -1, known) for source in sources),
    )
    return known[address]


@dataclass(frozen=True)
class Capture:
    """One of our tensors: the node that holds it and how its values become ours."""

    key: Key
    node: Node
    sizes: tuple[int, ...]  # [head, dim] or [dim] of one token; [head] for tensors with a query axis
    first: int = 0  # where it begins in a fused row
    scores: Node | None = None  # what softmax reads; scaling and masking happen inside the softmax node
    conventions: dict[str, Any] = field(default_factory=dict)

    @property
    def source(self) -> str:
        node = self.scores or self.node
        return f"{node.name} ({node.op})"


# the weight that a node reads -> what it computes; a bias is added later, so that its node wins
# the embedding and the logits are told by their own names, as one matrix may serve for both
_BY_WEIGHT = {weight: name for weight, name in BY_WEIGHT.items() if name not in ("embd", "logits")}
# llama.cpp's name, and its op where the name has several -> ours; the last one in the graph wins
_BY_NAME = {
    "embd": "embd",
    "inp_scaled": "embd",
    "pos_embd": "pos_embd",
    "inpL": "embd",  # with positions added
    "Qcur VIEW": "q",  # parts of a fused product
    "Kcur VIEW": "k",
    "Vcur VIEW": "v",
    "Qcur ROPE": "q_rope",
    "Kcur ROPE": "k_rope",
    "kq_soft_max": "probs",
    "kqv_out": "attn",
    "ffn_inp": "resid_mid",
    "sa_out": "resid_mid",
    "ffn_moe_topk": "expert_ids",
    "ffn_moe_weights": "expert_weights",
    "ffn_moe_weights_softmax": "expert_weights",
    "ffn_moe_weights_norm": "expert_weights",
    "ffn_moe_weights_scaled": "expert_weights",
    "ffn_moe_swiglu": "expert_act",
    "ffn_moe_geglu": "expert_act",
    "ffn_moe_swiglu_oai": "expert_act",
    "ffn_moe_out": "moe_out",
    "ffn_out ADD": "ffn_out",  # with what the shared expert gives
    "l_out": "resid_out",
    "result_output": "logits",
}
ROTATION = "attn_inp_v_rot"  # with a quantised KV cache V is rotated before it is stored, and attn back after
# whose form with three axes tells the number of heads
_HEADS = dict.fromkeys(("q", "q_norm", "q_rope", "attn"), "Qcur") | {"v": "Vcur"}
_HEADS |= dict.fromkeys(("k", "k_norm", "k_rope"), "Kcur")

_SLOTS = ("expert_gate", "expert_up", "expert_act", "expert_out")  # one row for each expert of a token


def resolve(nodes: Iterable[Node], tokens: int) -> dict[Key, Capture]:
    """Our tensors in the graph of `tokens` tokens; what an architecture computes otherwise is left out."""
    found: dict[Key, Node] = {}
    heads: dict[tuple[str, int | None], int] = {}
    for node in nodes:
        found |= dict.fromkeys(_keys(node), node)
        if node.op in ("RESHAPE", "VIEW", "ROPE"):
            heads[node.title] = node.sizes[1]
    for layer in {key.layer for key in found if key.layer is not None}:
        _find_unnamed(layer, found)
    _find_ends(found)
    captures = {key: _capture(key, node, tokens, heads) for key, node in found.items()}
    for key in [key for key in captures if key.name == "probs"]:
        captures |= {capture.key: capture for capture in _attention(captures[key])}
    for key in [key for key in captures if key.name == "up"]:
        captures |= {capture.key: capture for capture in _fused_gate(captures, key)}
    return captures


def _keys(node: Node) -> Iterator[Key]:
    """The keys whose value `node` is, unless a later node is, too."""
    for source in node.sources:
        match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(?:weight|bias)", source.name)
        if match and match[2] in _BY_WEIGHT:
            yield Key(None if match[1] is None else int(match[1]), _BY_WEIGHT[match[2]])
    title, layer = node.title
    name = _BY_NAME.get(title) or _BY_NAME.get(f"{title} {node.op}")
    if name:
        yield Key(layer, name)


def _find_unnamed(layer: int, found: dict[Key, Node]) -> None:
    """What only its place tells: the inputs of both projections back and of the feed-forward norm."""
    if Key(layer, "moe_out") in found and Key(layer, "shared_out") not in found:
        found[Key(layer, "ffn_out")] = found.pop(Key(layer, "moe_out"))
    down, norm, post, middle = (
        found.get(Key(layer, name)) for name in ("ffn_out", "ffn_norm", "attn_post_norm", "resid_mid")
    )
    down = found.get(Key(layer, "shared_out"), down)
    if (out := found.get(Key(layer, "attn_out"))) and out.product:
        read = out.product.sources[1].base
        if read.op == "MUL_MAT" and read.sources[0].name == ROTATION:  # kqv_out is not turned back yet
            found[Key(layer, "attn")] = read
    if down and down.product:
        found[Key(layer, "act")] = down.product.sources[1].base
    if norm and not middle and (source := norm.sources[0].sources[0]).op == "ADD" and source.title[1] is None:
        found[Key(layer, "resid_mid")] = source
    if post and middle and not norm and post.sources[0].sources[0] is middle:
        # a norm before the feed-forward block that the file calls post_attention_norm
        found[Key(layer, "ffn_norm")] = found.pop(Key(layer, "attn_post_norm"))


def _find_ends(found: dict[Key, Node]) -> None:
    """The embedding that positions are added to, and the head's product where logits are scaled or capped."""
    embd, logits = (found.get(Key(None, name)) for name in ("embd", "logits"))
    if embd and Key(None, "pos_embd") in found:
        found[Key(None, "tok_embd")] = embd.sources[0]
    product = logits
    while product and product.op in ("SCALE", "TANH"):
        product = product.sources[0]
    if product and product is not logits:
        found[Key(None, "raw_logits")] = product


def _capture(key: Key, node: Node, tokens: int, heads: dict[tuple[str, int | None], int]) -> Capture:
    width = prod(node.sizes) // tokens
    count = heads.get((_HEADS.get(key.name, ""), key.layer))
    if key.name in _SLOTS:
        count = node.sizes[1]
    sizes = (width,) if count is None else (count, width // count)
    return Capture(key, node, sizes, conventions=_conventions(node))


def _conventions(node: Node) -> dict[str, Any]:
    """What the values mean, as far as the node's own parameters and weight tell."""
    if node.op == "ROPE":
        pairing = {0: "interleaved", 2: "half-split"}.get(node.params[2], f"ggml mode {node.params[2]}")
        return {"pairing": pairing, "dims": node.params[1], "base": node.number(5)}
    if node.op in ("GELU", "GELU_QUICK", "GEGLU", "GEGLU_QUICK"):
        return {"activation_type": "F16"}  # looked up in a table of 16-bit numbers
    if node.op == "MUL" and node.sources[0].op == "RMS_NORM":
        return {"eps": node.sources[0].number(0)}
    if node.product and node.product.sources[0].name.endswith(".weight"):
        kind = Kind(node.product.sources[0].kind)
        return {"weight_type": kind.name, "activation_type": activation(kind)}
    return {}


def activation(weight: Kind) -> str:
    """The type that ggml's CPU backend rounds activations to for a product with a weight (`vec_dot_type`)."""
    if weight in (Kind.F32, Kind.F16, Kind.BF16):
        return weight.name
    if weight in (Kind.Q4_1, Kind.Q5_1):
        return "Q8_1"
    return "Q8_0" if weight in (Kind.Q4_0, Kind.Q5_0, Kind.Q8_0, Kind.IQ4_NL, Kind.MXFP4) else "Q8_K"


def activations(model: Model) -> str:
    """What products of a model round activations to: q8 (8 bits, a scale for each block) or a float type."""
    kinds = {Kind[model.tensor_type(name)] for name in model.names if len(model.shape(name)) > 1}
    rounded = {activation(kind) for kind in kinds} - {"F32"}
    return "q8" if any(kind.startswith("Q8") for kind in rounded) else min(rounded, default="f32").lower()


def _attention(probs: Capture) -> Iterator[Capture]:
    """probs, and what is derived from the input of softmax, `soft_max_ext(kq, mask, scale)`."""
    node, kq, layer = probs.node, probs.node.sources[0], probs.key.layer
    conventions: dict[str, Any] = {"scale": node.number(0)}
    if kq.op == "SCALE":  # of a soft cap: cap * tanh(kq / cap)
        conventions["softcap"] = kq.number(0)
    query = kq.base if kq.op == "MUL_MAT" else kq.sources[0].sources[0].sources[0]
    if query.sources[1].base.op == "SCALE":  # some architectures scale Q itself
        conventions["scale"] *= query.sources[1].base.number(0)
    sizes = (node.sizes[2],)
    yield Capture(probs.key, node, sizes, conventions=conventions)
    if node.number(1):  # ALiBi adds a slope that differs from head to head
        return
    made = {**conventions, "formula": "scale * kq + mask"}  # as softmax does inside
    yield Capture(Key(layer, "scores"), node, sizes, scores=kq, conventions=made)
    for name in ("m", "l"):
        derived = {**conventions, "derived": True}
        yield Capture(Key(layer, name), node, sizes, scores=kq, conventions=derived)


def _fused_gate(captures: dict[Key, Capture], key: Key) -> Iterator[Capture]:
    """Gate and up where one product gives both, the gate first."""
    up, act = captures[key], captures.get(Key(key.layer, "act"))
    if act and act.node.op in _GATED and len(act.node.sources) == 1:
        half = up.sizes[0] // 2
        for name, first in (("gate", 0), ("up", half)):
            yield Capture(Key(key.layer, name), up.node, (half,), first, conventions=up.conventions)
