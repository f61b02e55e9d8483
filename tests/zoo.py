"""An architecture that has whatever a cause needs: a llama with more norms, windows, caps and biases.

It exists in the tests only. Metadata keys of the file say what a layer has; see `FEATURES`.
"""

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from ggufs import write_gguf
from tensortrace.tracer.experts import experts
from tensortrace.tracer.graph import POSITIONS, TOKENS, Graph

ARCH = "zoo"
EXPERTS = 4
FEATURES: dict[str, dict[str, Any]] = {  # what a cause needs -> arguments of write_gguf
    "bias": {"bias": True},
    "qk_norm": {"qk_norm": True},
    "embed_scale": {"metadata": {"embed_scale": 55.4256}},
    "window": {"metadata": {"window": 7}},
    "local_rope": {"metadata": {"local_rope": 1e6}},
    "Q4_1": {"qtype": "Q4_1"},
    "loud_ffn": {},
    "loud_v": {},
    "longrope": {},
    "moe": {"metadata": {"expert_count": EXPERTS, "expert_used_count": 2}},
}


def build(g: Graph) -> None:
    hp = g.model.hparam
    heads, kv_heads = hp("attention.head_count"), hp("attention.head_count_kv")
    size, eps = hp("attention.key_length"), hp("attention.layer_norm_rms_epsilon")
    x = g.op("embd", "embedding", TOKENS, w=("token_embd.weight",), scale=hp("embed_scale", 1.0))
    for layer in g.layers(hp("block_count")):
        base = hp("local_rope", 0.0) if layer % 2 and hp("local_rope", 0.0) else hp("rope.freq_base")
        rope = {"base": base, "dims": size, "pairing": "interleaved"}
        h = g.op("attn_norm", "rms_norm", x, w=("attn_norm.weight",), eps=eps)
        q = g.op("q", "linear", h, w=("attn_q.weight", "attn_q.bias?"), heads=heads)
        k = g.op("k", "linear", h, w=("attn_k.weight", "attn_k.bias?"), heads=kv_heads)
        v = g.op("v", "linear", h, w=("attn_v.weight", "attn_v.bias?"), heads=kv_heads)
        if f"blk.{layer}.attn_q_norm.weight" in g.model:
            q = g.op("q_norm", "rms_norm", q, w=("attn_q_norm.weight",), eps=eps)
            k = g.op("k_norm", "rms_norm", k, w=("attn_k_norm.weight",), eps=eps)
        if "rope_factors_long.weight" in g.model:
            rope |= {"w": ("/rope_factors_short.weight", "/rope_factors_long.weight"), "original": 100}
        q = g.op("q_rope", "rope", q, POSITIONS, **rope)
        k = g.op("k_rope", "rope", k, POSITIONS, **rope)
        window = hp("window", None)
        a = g.op("attn", "attention", q, k, v, scale=size**-0.5, **({"window": window} if window else {}))
        a = g.op("attn_out", "linear", a, w=("attn_output.weight",))
        x = g.op("resid_mid", "add", x, a)
        h = g.op("ffn_norm", "rms_norm", x, w=("ffn_norm.weight",), eps=eps)
        gate = g.op("gate", "linear", h, w=("ffn_gate.weight",))
        up = g.op("up", "linear", h, w=("ffn_up.weight",))
        a = g.op("act", "glu", gate, up, activation="silu")
        if hp("expert_count", 0):
            routed = experts(g, h, out="moe_out", renormalised=True, activation="silu")
            shared = g.op("shared_out", "linear", a, w=("ffn_down.weight",))
            h = g.op("ffn_out", "gated_add", routed, shared, h, w=("ffn_gate_inp_shexp.weight",))
        else:
            h = g.op("ffn_out", "linear", a, w=("ffn_down.weight",))
        x = g.op("resid_out", "add", x, h)
    x = g.op("final_norm", "rms_norm", x, w=("output_norm.weight",), eps=eps)
    g.op("logits", "linear", x, w=("output.weight",))


def register() -> None:
    """Make the architecture known, as a file tracer/arch/zoo.py would."""
    name = f"tensortrace.tracer.arch.{ARCH}"
    module = ModuleType(name)
    module.__spec__, module.build = ModuleSpec(name, None), build  # type: ignore[attr-defined]
    sys.modules[name] = module


def write(path: Path, needs: tuple[str, ...], layers: int = 2) -> Path:
    """A small model that has all of `needs`."""
    register()
    arguments: dict[str, Any] = {"layers": layers, "seed": 5, "rope_base": 10000.0, "ff": 96}
    for need in needs:
        arguments |= FEATURES[need]
    loud = {"loud_ffn": ("ffn_up", 3e4), "loud_v": ("attn_v", 1e5)}
    tensors = {}
    for need in set(needs) & set(loud):
        role, factor = loud[need]
        random, rows = np.random.default_rng(3), {"ffn_up": 96, "attn_v": 32}[role]
        for layer in range(arguments["layers"]):
            values = factor * random.normal(0, 1 / 8, (rows, 64))
            tensors[f"blk.{layer}.{role}.weight"] = values.astype(np.float32)
    if "longrope" in needs:
        factors = {"rope_factors_short": 1.0, "rope_factors_long": np.linspace(1, 8, 8)}
        tensors |= {f"{name}.weight": np.full(8, values, np.float32) for name, values in factors.items()}
    if "moe" in needs:
        tensors |= _experts(arguments["layers"], arguments["ff"])
    return write_gguf(path, ARCH, tensors=tensors, **arguments)


def _experts(layers: int, ff: int, dim: int = 64) -> dict[str, np.ndarray]:
    """The weights of the experts and their router, and the gate of the shared one."""
    random = np.random.default_rng(9)
    shapes = {
        "ffn_gate_inp": (EXPERTS, dim),
        "ffn_gate_inp_shexp": (dim,),
        "ffn_gate_exps": (EXPERTS, ff, dim),
        "ffn_up_exps": (EXPERTS, ff, dim),
        "ffn_down_exps": (EXPERTS, dim, ff),
    }
    return {
        f"blk.{layer}.{role}.weight": random.normal(0, shape[-1] ** -0.5, shape).astype(np.float32)
        for layer in range(layers)
        for role, shape in shapes.items()
    }
