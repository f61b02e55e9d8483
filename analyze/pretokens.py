"""Whether a prompt's ids are those that the model's tokeniser gives its text, or those of another rule."""

from collections.abc import Iterator
from typing import Any

from ..tracer.errors import ModelError
from ..tracer.gguf import Model
from ..tracer.pretokenizers import RULES
from ..tracer.text import visible
from ..tracer.tokenizer import Tokenizer
from ..tracer.trace import Trace
from .causes.tokens_pretok import TokensPretok
from .findings import Finding
from .tokens import TOKENS, UNKNOWN

KEY = "tokenizer.ggml.pre"
NAMED = 3  # rules that are told of those that give the ids


def cut_otherwise(trace: Trace, model: Model, who: str) -> Finding | None:
    """The cause, where the ids spell the prompt's text as the model's tokeniser does, but are others.

    None where the trace holds no text or no ids, and for vocabularies that are not supported.
    """
    text, ids = trace.header.prompt, trace.prompt_ids.tolist()
    if not text or not ids or UNKNOWN in ids:
        return None
    try:
        tokenizer = Tokenizer(model.metadata)
        right = [*_encoded(tokenizer, text)]
        spelled = {tokenizer.decode(made) for made in right}
        if ids in right or tokenizer.decode(ids) not in spelled:
            return None
        rules = [*_rules_that_give(ids, text, model.metadata)]
    except ModelError:
        return None
    own = model.metadata.get(KEY, "default")
    told = f"{who} cut the prompt into {len(ids)} tokens, the model's tokeniser into {len(right[0])}"
    if rules:
        told += f": those of the rule {', '.join(rules[:NAMED])}, where the model has {visible(str(own))}"
    return Finding(TokensPretok.id, 0, None, TOKENS, 1.0 if rules else 0.5, told, TokensPretok.fix)


def _encoded(tokenizer: Tokenizer, text: str) -> Iterator[list[int]]:
    """With the tokens that belong at its ends, and without."""
    for special in (True, False):
        yield tokenizer.encode(text, add_special=special)


def _rules_that_give(ids: list[int], text: str, metadata: dict[str, Any]) -> Iterator[str]:
    for name in RULES:
        if ids in _encoded(Tokenizer({**metadata, KEY: name}), text):
            yield name
