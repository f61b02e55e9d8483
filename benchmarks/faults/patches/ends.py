"""Both ends: embedding and head."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from faults.patching import Break, fault, named


@fault("embed_scale", "embd")
def embedding_scaled(model: Any, stack: ExitStack, where: list[int]) -> None:
    model.model.embed_tokens.register_forward_hook(lambda module, args, out: out * 8)


@fault("embed_offset", "embd")
def embedding_of_next_id(model: Any, stack: ExitStack, where: list[int]) -> None:
    table = model.model.embed_tokens
    table.weight.data = table.weight.data.roll(-1, 0)


@fault("tied_head", "logits")
def head_is_embedding(model: Any, stack: ExitStack, where: list[int]) -> None:
    model.lm_head.weight = model.model.embed_tokens.weight


def head(change: Callable[[Any], Any]) -> Break:
    """A fault by `change(logits)`."""

    def apply(model: Any, stack: ExitStack, where: list[int]) -> None:
        model.lm_head.register_forward_hook(lambda module, args, out: change(out))

    return apply


def without_last(logits: Any) -> Any:
    return torch.cat((logits[..., :280], torch.zeros_like(logits[..., 280:])), -1)


for _name, _ids, _head in (
    ("logits_halved", "logit_scale", lambda x: x / 2),
    ("logits_capped", "logit_softcap", lambda x: 3 * (x / 3).tanh()),
    ("logits_of_row_before", "logits_row", lambda x: x.roll(1, 1)),
    ("logits_of_padding", "vocab_pad", without_last),
):
    fault(_ids, "logits")(named(_name, head(_head)))
