"""The small models of every architecture that the tests run: one entry, a few shapes each."""

from dataclasses import dataclass, field
from typing import Any

TOKENS = (5, 250, 17, 17, 99, 3, 280, 84, 104, 101, 32, 259, 260, 271, 97, 98, 99, 12, 77, 201, 18, 44, 9)


@dataclass(frozen=True)
class Case:
    """A model: `shape` as `ggufs.write_gguf` takes it, and the tensors that the references do not show."""

    arch: str
    name: str
    shape: dict[str, Any] = field(default_factory=dict)
    unseen_by_llama_cpp: frozenset[str] = frozenset()
    unseen_by_torch: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return f"{self.arch}-{self.name}"


ALIKE = {"heads": 4, "kv_heads": 4, "head_dim": 16, "tied": True}  # as many KV heads as heads
THIRD = {"heads": 6, "kv_heads": 2, "head_dim": 20, "embd": 96}
EIGHTH = {"heads": 8, "kv_heads": 1, "head_dim": 12, "embd": 80, "tied": True}
HEADS = {"alike": ALIKE, "third": THIRD, "eighth": EIGHTH}
EVEN = {  # where llama.cpp insists on head size = width / heads
    "alike": ALIKE,
    "third": {"heads": 6, "kv_heads": 2, "head_dim": 20, "embd": 120},
    "eighth": {"heads": 8, "kv_heads": 1, "head_dim": 12, "embd": 96, "tied": True},
}

LINEAR = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
YARN = {  # the prompt runs past these 16 positions
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 4.0,
    "rope.scaling.original_context_length": 16,
}
GEMMA = {"post_norms": True, "tied": True, "layers": 7}
WINDOW = {"attention.sliding_window": 6}
CAPS = {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0}


def cases(arch: str, shapes: dict[str, dict[str, Any]], **unseen: frozenset[str]) -> list[Case]:
    return [Case(arch, name, shape, **unseen) for name, shape in shapes.items()]


def each(shapes: dict[str, dict[str, Any]], **more: Any) -> dict[str, dict[str, Any]]:
    return {name: shape | more for name, shape in shapes.items()}


CASES = [
    *cases("llama", HEADS | {"linear": THIRD | {"metadata": LINEAR}, "yarn": THIRD | {"metadata": YARN}}),
    *cases("qwen2", each(EVEN, bias=True) | {"yarn": EVEN["third"] | {"bias": True, "metadata": YARN}}),
    *cases("qwen3", each(HEADS, qk_norm=True) | {"yarn": THIRD | {"qk_norm": True, "metadata": YARN}}),
    *cases(
        "gemma2",
        each(HEADS, **GEMMA, metadata=WINDOW | CAPS),
        unseen_by_llama_cpp=frozenset({"raw_logits"}),
        unseen_by_torch=frozenset({"raw_logits"}),
    ),
    *cases(
        "gemma3",
        each(HEADS, **GEMMA, qk_norm=True, metadata=WINDOW)
        | {"linear": THIRD | GEMMA | {"qk_norm": True, "metadata": WINDOW | LINEAR}},
    ),
]
