"""Whether two traces saw the same tokens, and how far."""

from dataclasses import dataclass
from itertools import takewhile

import numpy as np

from ..tracer.text import visible
from ..tracer.trace import Trace

TOKENS = "tokens"
UNKNOWN = -1  # the id of a token of which a log does not tell it
BOS_KEY = "tokenizer.ggml.bos_token_id"


@dataclass(frozen=True)
class Agreement:
    """The first `common` tokens are the same in both.

    `refusal` says in a sentence why the traces cannot be compared; `bos` that one side has just a leading
    token more; `note` whatever else a reader should know.
    """

    common: int
    refusal: str | None = None
    bos: str | None = None
    note: str | None = None


def agreement(a: Trace, b: Trace) -> Agreement:
    """How far the ids that were fed to the model agree, from the first on."""
    for side, trace in (("ours", a), ("the reference", b)):
        if not trace.n_tokens:
            return Agreement(0, refusal=f"{side} ({_name(trace)}) holds no finished step: nothing to compare")
    ids_a, ids_b = a.tokens, b.tokens
    shorter = min(len(ids_a), len(ids_b))
    unknown = (ids_a[:shorter] == UNKNOWN) | (ids_b[:shorter] == UNKNOWN)
    common = sum(1 for _ in takewhile(bool, (ids_a[:shorter] == ids_b[:shorter]) | unknown))
    if common == shorter:
        said = (_lengths(a, b), _unknown(a, b, unknown))
        return Agreement(common, note="; ".join(text for text in said if text) or None)
    if common >= max(len(a.prompt_ids), len(b.prompt_ids)):
        return Agreement(common, note=_parted(a, b, common))
    return Agreement(0, bos=_leading(a, b)) if _leading(a, b) else Agreement(0, refusal=_differ(a, b, common))


def _unknown(a: Trace, b: Trace, unknown: np.ndarray) -> str | None:
    """What is taken on trust where a log does not tell the ids."""
    if not unknown.any():
        return None
    sides = [side for side, trace in (("ours", a), ("the reference", b)) if (trace.tokens == UNKNOWN).any()]
    return (
        f"{' and '.join(sides)} does not tell the ids of {int(unknown.sum())} of {len(unknown)} tokens: "
        "that they are the same is taken on trust"
    )


def _lengths(a: Trace, b: Trace) -> str | None:
    if len(a.tokens) == len(b.tokens):
        last = [int(trace.generated[-1]) for trace in (a, b) if len(trace.generated)]
        if len(last) == 2 and UNKNOWN not in last and last[0] != last[1]:
            return "the same tokens were fed, but the last one generated differs"
        return None
    return (
        f"ours has {len(a.tokens)} tokens, the reference {len(b.tokens)}: "
        f"the first {min(len(a.tokens), len(b.tokens))} are compared"
    )


def _parted(a: Trace, b: Trace, at: int) -> str:
    return (
        f"the generated texts part at token {at} (ours {_token(a, at)}, the reference {_token(b, at)}): "
        f"the {at} tokens before it are compared"
    )


def _differ(a: Trace, b: Trace, at: int) -> str:
    return (
        f"different token ids: at position {at} ours has {_token(a, at)}, the reference {_token(b, at)} "
        f"(prompts {_prompt(a)} and {_prompt(b)}); record both with the same prompt"
    )


def _leading(a: Trace, b: Trace) -> str | None:
    """What a leading token that only one side has is, where the prompts are the same but for it."""
    sides = ((a, "ours"), (b, "the reference"))
    (longer, side), (other, _) = sorted(sides, key=lambda entry: -len(entry[0].prompt_ids))
    ids = longer.prompt_ids
    if not len(other.prompt_ids) or UNKNOWN in ids or not np.array_equal(ids[1:], other.prompt_ids):
        return None
    piece = longer.pieces[0]
    doubled = ids[0] == ids[1]
    known = ids[0] == longer.header.hyperparameters.get(BOS_KEY, -1)
    if not (doubled or known or not piece or (piece.startswith(b"<") and piece.endswith(b">"))):
        return None
    what = "begins with the same token twice" if doubled else "has one token more in front"
    return f"{side} {what}: {_token(longer, 0)}; all other {len(ids) - 1} ids of the prompt agree"


def _token(trace: Trace, at: int) -> str:
    """Id and text of a token, as in 504 ' cat'."""
    piece = trace.pieces[at].decode("utf-8", "backslashreplace")
    return f"{trace.tokens[at]} '{visible(piece)}'" if piece else f"{trace.tokens[at]}"


def _prompt(trace: Trace) -> str:
    return f"'{visible(trace.header.prompt, 40)}'" if trace.header.prompt else "of ids"


def _name(trace: Trace) -> str:
    return visible(trace.path.name)
