"""Prompts that were cut into tokens by another rule than the model's."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ggufs import write_gguf
from recording import header
from tensortrace.analyze.cause import causes
from tensortrace.analyze.compare import compare
from tensortrace.analyze.find import name_causes
from tensortrace.analyze.pretokens import cut_otherwise
from tensortrace.tracer.architecture import build_graph
from tensortrace.tracer.engines.cpu import Engine
from tensortrace.tracer.errors import UserError
from tensortrace.tracer.gguf import Model
from tensortrace.tracer.record import Request, record
from tensortrace.tracer.tokenizer import Tokenizer
from tensortrace.tracer.trace import Trace

TEXT = "the 1234 cats"
NUMBERS = ("12", "34", "1234")  # what the merges below make of the digits; the last three ids


@pytest.fixture
def model(tmp_path: Path) -> Model:
    """A model with merges of digits, which the rules cut in other places."""
    made = Model(write_gguf(tmp_path / "m.gguf"))
    tokens, merges = (made.metadata[f"tokenizer.ggml.{key}"] for key in ("tokens", "merges"))
    made.metadata |= {
        "tokenizer.ggml.tokens": [*tokens[:-6], *NUMBERS, *tokens[-3:]],
        "tokenizer.ggml.merges": [*merges[:-3], "1 2", "3 4", "12 34"],
    }
    return made


@pytest.fixture
def recorded(model: Model, tmp_path: Path) -> Callable[..., Trace]:
    """A run of ids that says what text it was given."""

    def run(name: str, ids: list[int], text: str = TEXT) -> Trace:
        engine = Engine(build_graph(model), model)
        record(engine, Request(ids, n_new=2), tmp_path / name, replace(header(model), prompt=text))
        return Trace(tmp_path / name)

    return run


def encoded(model: Model, rule: str) -> list[int]:
    metadata: dict[str, Any] = model.metadata | {"tokenizer.ggml.pre": rule}
    return Tokenizer(metadata).encode(TEXT)


def test_another_rule_is_named(model: Model, recorded: Callable[..., Trace]) -> None:
    right, wrong = encoded(model, "gpt-2"), encoded(model, "smollm")  # digits one by one
    assert len(wrong) > len(right)
    ours, reference = recorded("a.h5", wrong), recorded("b.h5", right)
    for a, b, who in ((ours, reference, "ours"), (reference, ours, "the reference")):
        assert compare(a, b).verdict == "incomparable"
        found = name_causes(compare(a, b), a, b, model)
        assert (found.exit_code, found.verdict) == (1, "diverged")
        assert [cause.id for cause in found.causes] == ["tokens_pretok"]
        assert found.causes[0].evidence.startswith(f"{who} cut the prompt into {len(wrong)} tokens")
        assert "smollm" in found.causes[0].evidence
        assert found.first is not None
        assert (found.first.tensor, found.first.step) == ("tokens", 0)


def test_merges_that_no_rule_gives_are_told_with_less_confidence(
    model: Model, recorded: Callable[..., Trace]
) -> None:
    tokenizer = Tokenizer(model.metadata)
    parts = [*"the", TEXT.removeprefix("the")]  # which merges would have joined
    ids = [token for part in parts for token in tokenizer.encode(part, add_special=False)]
    found = cut_otherwise(recorded("a.h5", ids), model, "ours")
    assert found is not None
    assert (found.id, found.confidence) == ("tokens_pretok", 0.5)


@pytest.mark.parametrize("ids", [[84, 104, 101], [297]])
def test_another_text_is_none(model: Model, recorded: Callable[..., Trace], ids: list[int]) -> None:
    assert cut_otherwise(recorded("a.h5", ids), model, "ours") is None


def test_quiet(model: Model, recorded: Callable[..., Trace]) -> None:
    """The right ids, no text, and a vocabulary that is not known."""
    right = encoded(model, "gpt-2")
    assert cut_otherwise(recorded("a.h5", right), model, "ours") is None
    assert cut_otherwise(recorded("b.h5", encoded(model, "smollm"), ""), model, "ours") is None
    unknown: Any = SimpleNamespace(metadata={"tokenizer.ggml.model": "other"})
    assert cut_otherwise(recorded("c.h5", encoded(model, "smollm")), unknown, "ours") is None


def test_prompts_of_other_texts_stay_incomparable(model: Model, recorded: Callable[..., Trace]) -> None:
    a = recorded("a.h5", encoded(model, "gpt-2"))
    b = recorded("b.h5", [5, 6, 7], "another")
    assert name_causes(compare(a, b), a, b, model).exit_code == 2


def test_it_can_be_injected(model: Model) -> None:
    right = encoded(model, "gpt-2")
    made = causes()["tokens_pretok"].change_ids(right, model.metadata)
    assert made != right
    assert Tokenizer(model.metadata).decode(made) == TEXT
    with pytest.raises(UserError, match="alike"):
        causes()["tokens_pretok"].change_ids(right[:1], model.metadata)
