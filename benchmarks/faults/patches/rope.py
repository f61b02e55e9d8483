"""RoPE."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from faults.patching import BF16, LAYERS, Break, fault, named, patched
from transformers.models.llama import modeling_llama as llama


def rotation(stack: ExitStack, model: Any, where: list[int], rotate: Callable[..., Any]) -> None:
    """`rotate(q, k, cos, sin)` in place of apply_rotary_pos_emb in some layers."""
    right, count = llama.apply_rotary_pos_emb, [0]

    def apply(q: Any, k: Any, cos: Any, sin: Any, **options: Any) -> Any:
        layer, count[0] = count[0] % LAYERS, count[0] + 1
        return (rotate if layer in where else right)(q, k, cos, sin)

    patched(stack, llama, "apply_rotary_pos_emb", apply)


def turn(x: Any, cos: Any, sin: Any) -> Any:
    return x * cos[:, None] + llama.rotate_half(x) * sin[:, None]


def angles(change: Callable[[Any, Any], Any]) -> Break:
    """A fault by `change(position_ids, inv_freq)` -> angles [batch, token, pair]."""

    def apply(model: Any, stack: ExitStack, where: list[int]) -> None:
        positions: list[Any] = []
        rotary = model.model.rotary_emb
        right = rotary.forward

        def forward(x: Any, position_ids: Any) -> Any:
            positions[:] = [position_ids]
            return right(x, position_ids)

        patched(stack, rotary, "forward", forward)

        def rotate(q: Any, k: Any, cos: Any, sin: Any) -> Any:
            wrong = change(positions[0].float(), rotary.inv_freq)
            both = torch.cat((wrong, wrong), -1)
            return turn(q, both.cos(), both.sin()), turn(k, both.cos(), both.sin())

        rotation(stack, model, where, rotate)

    return apply


def outer(positions: Any, freqs: Any) -> Any:
    return positions[..., None] * freqs


def frequencies(base: float, count: int, step: int = 2) -> Any:
    return base ** (-torch.arange(0, step * count, step).float() / (2 * count))


ROPE = "q_rope k_rope"
for _name, _ids, _change in (
    ("rope_base_500000", "rope_theta", lambda p, f: outer(p, frequencies(5e5, len(f)))),
    ("rope_base_1000", "rope_theta", lambda p, f: outer(p, frequencies(1e3, len(f)))),
    ("rope_base_33333", "rope_theta", lambda p, f: outer(p, frequencies(33333, len(f)))),
    ("rope_linear_scaling_4", "rope_scaling", lambda p, f: outer(p, f / 4)),
    ("rope_wrong_way_round", "rope_kernel", lambda p, f: -outer(p, f)),
    ("rope_positions_from_1", "rope_position", lambda p, f: outer(p + 1, f)),
    ("rope_restarts", "rope_position", lambda p, f: outer(p - p[..., :1], f)),
    ("rope_decode_ahead", "rope_position", lambda p, f: outer(p + (p.shape[-1] == 1), f)),
    ("rope_angles_doubled", "rope_twice", lambda p, f: 2 * outer(p, f)),
    ("rope_bf16_angles", "rope_precision", lambda p, f: (p.to(BF16)[..., None] * f.to(BF16)).float()),
    ("rope_table_too_short", "rope_stale_table", lambda p, f: outer(p.clamp(max=15), f)),
    ("rope_half_exponent", "rope_freq", lambda p, f: outer(p, frequencies(1e4, len(f), 1))),
):
    fault(_ids, ROPE)(named(_name, angles(_change)))


@fault("rope_pairing", ROPE)
def rope_interleaved(model: Any, stack: ExitStack, where: list[int]) -> None:
    def pairs(x: Any, cos: Any, sin: Any) -> Any:
        half = x.shape[-1] // 2
        c, s = (part[:, None, :, :half].repeat_interleave(2, -1) for part in (cos, sin))
        turned = torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)
        return x * c + turned * s

    rotation(stack, model, where, lambda q, k, cos, sin: (pairs(q, cos, sin), pairs(k, cos, sin)))


@fault("nope_layers", ROPE)
def rope_left_out(model: Any, stack: ExitStack, where: list[int]) -> None:
    rotation(stack, model, where, lambda q, k, cos, sin: (q, k))


@fault("nope_layers", "k_rope")
def rope_of_q_only(model: Any, stack: ExitStack, where: list[int]) -> None:
    rotation(stack, model, where, lambda q, k, cos, sin: (turn(q, cos, sin), k))


@fault("yarn_mscale", ROPE)
def rope_magnitude(model: Any, stack: ExitStack, where: list[int]) -> None:
    rotation(stack, model, where, lambda q, k, cos, sin: (turn(q, cos, sin) * 1.3, turn(k, cos, sin) * 1.3))
