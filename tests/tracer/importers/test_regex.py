"""Logs of one's own printf, by a regular expression."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dumps import import_or_refuse, refused
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recording import PROMPT, record_trace
from tensortrace.analyze.compare import compare
from tensortrace.tracer.gguf import Model
from tensortrace.tracer.importer import Options, import_dump
from tensortrace.tracer.names import Key
from tensortrace.tracer.printed import rounding
from tensortrace.tracer.trace import Trace

ROWS = r"(?P<name>\w+)\[(?P<layer>\d+)\]( head (?P<head>\d+))? token (?P<token>\d+): (?P<values>.*)"
PLAIN = r"(?P<name>[\w.]+) \[(?P<shape>[\dx]+)\] = (?P<values>.*)"


def read(tmp_path: Path, text: str, regex: str, **options) -> Trace:
    (tmp_path / "run.log").write_text(text)
    import_dump(tmp_path / "run.log", tmp_path / "a.h5", Options(regex=regex, **options))
    return Trace(tmp_path / "a.h5")


def test_the_first_values_of_each_row(
    record_tiny: Callable[..., Trace], tiny_model: Model, tmp_path: Path
) -> None:
    """With the model it is known how long the rows are; the rest of them stays unknown."""
    run = record_tiny(n_new=3)
    lines = ["loading the model"]
    for step in run.steps:
        q, k = (run.read(Key(1, name), step.index) for name in ("q_rope", "k_rope"))
        for row in range(step.n_tokens):
            for head in range(4):
                values = " ".join(f"{value:.4f}" for value in q[row, head, :5])
                lines.append(f"{step.index}: q_rope[1] head {head} token {row}: {values} ...")
            ends = [f"{value:.4f}" for value in k[row].ravel()[[0, 1, -2, -1]]]
            shown = f"[{ends[0]}, {ends[1]}, ..., {ends[2]}, {ends[3]}]"
            lines.append(f"{step.index}: k_rope[1] token {row}: {shown}")
        lines.append("sampled a token")
    with read(tmp_path, "\n".join(lines), rf"(?P<step>\d+): {ROWS}", model=tiny_model) as trace:
        assert [(s.start, s.n_tokens) for s in trace.steps] == [(s.start, s.n_tokens) for s in run.steps]
        assert trace.header.architecture == "llama"
        for key in (Key(1, "q_rope"), Key(1, "k_rope")):
            spec = trace.tensors[key]
            assert spec.conventions == {"rounding": 5e-5, "partial": True}
            for step in range(3):
                printed, true = trace.read(key, step), run.read(key, step)
                assert printed.shape == true.shape
                assert np.nanmax(np.abs(printed - true)) <= 5.1e-5
                assert np.isfinite(printed).sum() == len(true) * (20 if key.name == "q_rope" else 4)
        q = trace.read(Key(1, "q_rope"), 0)
        assert np.isfinite(q[:, :, :5]).all()
        k = trace.read(Key(1, "k_rope"), 0)
        assert np.isfinite(k[:, 0, :2]).all()
        assert np.isfinite(k[:, 1, -2:]).all()


def test_whole_tensors_in_one_line(tmp_path: Path) -> None:
    values = np.arange(24).reshape(3, 2, 4) / 8
    text = "".join(
        f"{name} [{'x'.join(map(str, array.shape))}] = {' '.join(f'{v:e}' for v in array.ravel())}\n"
        for name, array in (
            ("embd", values.reshape(3, 8)),
            ("blk.0.q", values),
            ("embd", values.reshape(3, 8)[:1]),
        )
    )
    with read(tmp_path, text, PLAIN) as trace:
        assert [step.n_tokens for step in trace.steps] == [3, 1]
        assert np.array_equal(trace.read(Key(0, "q"), 0), values)
        assert trace.tensors[Key(0, "q")].conventions["rounding"] == pytest.approx(5e-7)
        assert np.array_equal(trace.read(Key(None, "embd"), 1), values.reshape(3, 8)[:1])


def test_integers_are_exact(tmp_path: Path) -> None:
    with read(tmp_path, "expert_ids [2x3] = 1 2 3 4 5 6\n", PLAIN) as trace:
        assert trace.tensors[Key(None, "expert_ids")].conventions == {"rounding": 0.0}


def test_rounding_follows_the_exponent() -> None:
    assert [rounding(text) for text in ("1.25", "-3.5 1.125", "1.50e-03", "7", "1.0e999")] == pytest.approx(
        [0.005, 0.05, 5e-6, 0.0, 5e299]
    )


def test_stated_steps(tmp_path: Path) -> None:
    regex = r"step (?P<step>\d+) (?P<name>\w+): (?P<values>.*)"
    with read(tmp_path, "step 4 embd: 1 2\nstep 9 embd: 3 4\n", regex, steps="9-") as trace:
        assert trace.read(Key(None, "embd"), 0).tolist() == [[3.0, 4.0]]


@pytest.mark.parametrize(
    ("text", "regex", "message"),
    [
        ("q: 1 2", r"(?P<name>\w+): .*", "needs the groups name and values"),
        ("q: 1 2", r"(?P<name>\w+): (?P<values>.*)(?P<foo>)", "can have no other"),
        ("q: 1 2", r"(?P<name>\w+: (?P<values>.*)", "is no regular expression"),
        ("q = 1 2", r"(?P<name>\w+): (?P<values>.*)", "no line of .* matches"),
        ("\nembd: 1 x 2", r"(?P<name>\w+): (?P<values>.*)", "line 2: 'x' is no number"),
        ("embd: 1 ... 2 ... 3", r"(?P<name>\w+): (?P<values>.*)", "leaves numbers out in two places"),
        ("embd [2x2] = 1 2 3 4 5", PLAIN, "5 values were printed where 4 are expected"),
        ("q[0] token 3: 1\nq[0] token 9999999999: 2", ROWS, "is no index"),
        ("q[0] head 1 token 3: 1\nq[0] token 3: 2", ROWS, "count its tokens or heads, and others do not"),
    ],
)
def test_mistakes(tmp_path: Path, text: str, regex: str, message: str) -> None:
    (tmp_path / "run.log").write_text(text)
    refused(tmp_path / "run.log", message, regex=regex)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.from_regex(r"\A(q|k|embd|x)\[[0-3]\]( head [0-4])? token [0-9]{1,3}: [-0-9. einfa,\[\]]{0,12}\Z"),
        max_size=5,
    )
)
def test_any_lines(tmp_path: Path, lines: list[str]) -> None:
    (tmp_path / "run.log").write_text("\n".join(lines))
    import_or_refuse(tmp_path / "run.log", regex=ROWS)


def test_lines_of_a_prompts_last_token(tmp_path: Path, tiny_model: Model) -> None:
    """The first values of the last token, pass by pass: what people print first of all."""
    record_trace(tiny_model, tmp_path / "exact.h5", PROMPT, n_new=3)
    with Trace(tmp_path / "exact.h5") as exact, (tmp_path / "a.log").open("w") as file:
        for step in exact.steps:
            for layer in range(2):
                row = exact.read(Key(layer, "q"), step.index)[-1].ravel()[:8]
                file.write(f"layer {layer} Q: {' '.join(f'{value:.5f}' for value in row)} ...\n")
    regex = r"layer (?P<layer>\d+) (?P<name>\w+): (?P<values>.*)"
    told = import_dump(tmp_path / "a.log", tmp_path / "0.h5", Options(regex=regex, model=tiny_model))
    assert "--prompt-tokens" in told.notes[0]
    options = Options(regex=regex, model=tiny_model, prompt_tokens=len(PROMPT))
    assert import_dump(tmp_path / "a.log", tmp_path / "a.h5", options).notes == ()
    with Trace(tmp_path / "a.h5") as trace, Trace(tmp_path / "exact.h5") as exact:
        assert [step.n_tokens for step in trace.steps] == [len(PROMPT), 1, 1]
        found = compare(trace, exact)
        assert (found.exit_code, found.coverage["compared"]) == (0, 6)
        assert [row.values for row in found.rows()] == [8] * 6
        assert {row.of for row in found.rows()} == {64, 64 * len(PROMPT)}
