"""What the tests know of an architecture: `architectures/<name>.py` has an ENTRY for each.

`shapes` are the small models that are run, as `ggufs.write_gguf` takes them.  The rest tells `Case` and
`transformers_models` where the architecture differs from Llama.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from ggufs import Weights
from tensortrace.tracer.gguf import Model

TOKENS = (5, 250, 17, 17, 99, 3, 280, 84, 104, 101, 32, 259, 260, 271, 97, 98, 99, 12, 77, 201, 18, 44, 9)

Shapes = dict[str, dict[str, Any]]

ALIKE = {"heads": 4, "kv_heads": 4, "head_dim": 16, "tied": True}  # as many KV heads as heads
THIRD = {"heads": 6, "kv_heads": 2, "head_dim": 20, "embd": 96}
EIGHTH = {"heads": 8, "kv_heads": 1, "head_dim": 12, "embd": 80, "tied": True}
HEADS: Shapes = {"third": THIRD, "alike": ALIKE, "eighth": EIGHTH}
EVEN: Shapes = {  # where llama.cpp insists on head size = width / heads
    "third": {"heads": 6, "kv_heads": 2, "head_dim": 20, "embd": 120},
    "alike": ALIKE,
    "eighth": {"heads": 8, "kv_heads": 1, "head_dim": 12, "embd": 96, "tied": True},
}

LINEAR = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
YARN = {  # the prompt runs past these 16 positions
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 4.0,
    "rope.scaling.original_context_length": 16,
}
WINDOW = {"attention.sliding_window": 6}
EXPERTS = {
    "expert_count": 4,
    "expert_used_count": 2,
    "expert_feed_forward_length": 40,
}


@dataclass(frozen=True)
class Architecture:
    """`faults` are three that ports of it have.

    For transformers: the model type; `names` and `config` where they differ from Llama's; what becomes of a
    weight (`weight`); weights that have no one to one counterpart (`extra`, their own names being None).
    """

    shapes: Shapes
    faults: tuple[str, str, str]
    model_type: str
    names: Mapping[str, str | None] = field(default_factory=dict)
    config: Callable[[Model], dict[str, Any]] = lambda model: {}
    weight: Callable[[Model, str, np.ndarray], np.ndarray] = lambda model, name, values: values
    extra: Callable[[Model], dict[str, np.ndarray]] = lambda model: {}
    root: tuple[str, str] = ("model", "layers")


@dataclass(frozen=True)
class Case:
    """One model of an architecture."""

    arch: str
    name: str

    def __str__(self) -> str:
        return f"{self.arch}-{self.name}"

    @property
    def shape(self) -> dict[str, Any]:
        return ARCHITECTURES[self.arch].shapes[self.name]


def each(shapes: Shapes, **more: Any) -> Shapes:
    return {name: shape | more for name, shape in shapes.items()}


def mixture(weights: Weights) -> Weights:
    """Four experts of 40 in place of each feed-forward block."""
    rng = np.random.default_rng(2)
    made = {name: values for name, values in weights.items() if ".ffn_" not in name or "norm" in name}
    for name in [name for name in weights if name.endswith("ffn_gate.weight")]:
        block, width = name.removesuffix("ffn_gate.weight"), weights[name].shape[1]
        shapes = {"gate": (4, 40, width), "up": (4, 40, width), "down": (4, width, 40)}
        drawn = {f"ffn_{n}_exps": rng.normal(0, s[-1] ** -0.5, s) for n, s in shapes.items()}
        drawn["ffn_gate_inp"] = rng.normal(0, 2 * width**-0.5, (4, width))
        made |= {f"{block}{n}.weight": values.astype(np.float32) for n, values in drawn.items()}
    return made


def half_split(model: Model, name: str, values: np.ndarray) -> np.ndarray:
    """Rows of Q and K in transformers' order, RoPE pairs (i, i + dim/2), where a GGUF has (2i, 2i + 1)."""
    if "attn_q." not in name and "attn_k." not in name:
        return values
    pairs = values.reshape(-1, model.hparam("attention.key_length") // 2, 2, *values.shape[1:])
    return pairs.swapaxes(1, 2).reshape(values.shape)


def stacked_experts(model: Model) -> dict[str, np.ndarray]:
    """transformers has an expert's gate and up in one matrix, one behind the other."""
    made = {}
    for name in (name for name in model.names if "ffn_gate_exps." in name):
        gate, up, down = (model.weight(name.replace("gate", part)) for part in ("gate", "up", "down"))
        place = f"model.layers.{name.split('.')[1]}.mlp.experts."
        made |= {f"{place}gate_up_proj": np.concatenate([gate, up], axis=1), f"{place}down_proj": down}
    return made


def expert_config(model: Model) -> dict[str, Any]:
    hp = model.hparam
    return {
        "num_experts": hp("expert_count"),
        "num_experts_per_tok": hp("expert_used_count"),
        "moe_intermediate_size": hp("expert_feed_forward_length"),
    }


def rope(model: Model) -> dict[str, Any]:
    """`rope_parameters` of a transformers configuration."""
    hp = model.hparam
    kind = hp("rope.scaling.type", "default")
    parameters = {"rope_type": kind, "rope_theta": hp("rope.freq_base")}
    if kind != "default":
        parameters["factor"] = hp("rope.scaling.factor")
    if kind == "yarn":
        parameters["original_max_position_embeddings"] = hp("rope.scaling.original_context_length")
    return parameters


def _read(path: Path) -> Architecture:
    return import_module(f"architectures.{path.stem}").ENTRY


ARCHITECTURES = {
    path.stem.replace("_", "-"): _read(path)
    for path in sorted((Path(__file__).parent / "architectures").glob("*.py"))
}
CASES = [Case(arch, name) for arch, entry in ARCHITECTURES.items() for name in entry.shapes]
