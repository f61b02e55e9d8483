"""What people read: complete, in plain words, within 100 columns, and safe to show."""

import numpy as np
import pytest
from recording import PROMPT
from rich.console import Console
from synthetic import write_trace
from tensortrace.analyze.cause import Injection
from tensortrace.analyze.compare import Comparison, compare
from tensortrace.analyze.markdown import escape, sheet
from tensortrace.analyze.report import COLUMNS, render
from tensortrace.tracer.names import Key

HOSTILE = "q\x1b[31mred\x07[bold]x[/bold]|`<b>\u202e"
RESID = Key(0, "resid_out")


def shown(comparison: Comparison, **options) -> str:
    """The report as it comes on a terminal without colours that is 100 columns wide."""
    console = Console(width=100, markup=False, highlight=False, emoji=False, color_system=None)
    with console.capture() as capture:
        console.print(render(comparison, **options))
    return capture.get()


@pytest.fixture
def faulty(record_tiny) -> Comparison:
    change = Injection.parse("attn_scale@1").apply
    return compare(record_tiny(n_new=3, change=change), record_tiny(n_new=3))


def test_the_report_says_what_where_and_why(faulty):
    text = shown(faulty)
    for said in (
        "DIVERGED  The first divergence is L01 scores in step 0 (prefill): everything before it agrees",
        "ours is 4 times the reference",
        "scenario 4  Scores differ: by one factor: the scale is wrong.",
        "A  normalisation or bias missing?  no",
        "C  wrong scale factor?             yes",
        "(the reference)",
        "--model",
    ):
        assert said in text
    header = next(line for line in text.splitlines() if line.startswith("step"))
    assert header.split() == " ".join(COLUMNS).replace(">", "").split()


def test_rows_around_the_divergence_or_all(faulty):
    few, everything = (shown(faulty, everything=flag) for flag in (False, True))
    total = faulty.coverage["compared"]
    rows = [line for line in few.splitlines() if line.startswith(("0 ", "1 ", "2 "))]
    assert "diverged" in rows[4]
    assert f"{total - len(rows)} of {total} rows are not shown (--all)" in few
    assert sum(line.startswith(("0 ", "1 ", "2 ")) for line in everything.splitlines()) == total


@pytest.mark.parametrize("fault", ["norm_plus_one", "causal_mask", "softmax_no_max", "tokens_bos", None])
def test_nothing_is_wider_than_100_columns(record_tiny, fault):
    if fault is None:
        found = compare(record_tiny(softmax="two-pass"), record_tiny())
    else:
        injection = Injection.parse(fault)
        ids = injection.cause.change_ids(PROMPT, {})
        found = compare(record_tiny(ids=ids, change=injection.apply), record_tiny())
    lines = shown(found, everything=True).splitlines()
    assert max(map(len, lines)) <= 100
    assert not any("…" in line for line in lines)


def test_agreement_in_plain_words(record_tiny):
    trace = record_tiny()
    assert f"MATCH  All {len(trace.tensors)} tensors hold the same values." in shown(compare(trace, trace))
    text = shown(compare(trace, record_tiny(softmax="two-pass")))
    assert "ROUNDING ONLY" in text
    assert "agree as far as rounding explains" in text


def test_a_refusal_says_why_and_shows_no_table(record_tiny):
    text = shown(compare(record_tiny(), record_tiny(ids=[1, 2, 3])))
    assert "INCOMPARABLE  Different token ids: at position 0 ours has 84, the reference 1" in text
    assert "step" not in text


def hostile(tmp_path) -> Comparison:
    values = np.ones((3, 4), np.float32)
    text = {"prompt": HOSTILE, "model_name": HOSTILE, "injected": HOSTILE, "engine": HOSTILE}
    pieces = 3 * [HOSTILE.encode()[:32]]
    ours = {Key(0, HOSTILE): 2 * values, RESID: values}
    a = write_trace(tmp_path / "a\x1b[1m.h5", ours, pieces=pieces, **text)
    b = write_trace(
        tmp_path / "b.h5", {Key(0, HOSTILE): values, Key(9, HOSTILE): values, RESID: values[:, :3]}
    )
    return compare(a, b)


def test_text_of_files_cannot_act_on_a_terminal(tmp_path):
    for text in (shown(hostile(tmp_path)), sheet(hostile(tmp_path))):
        assert not {"\x1b", "\x07", "\u202e"} & set(text)
        assert "\\x1b" in text
    assert "[bold]" in shown(hostile(tmp_path))  # markup is shown, not obeyed


def test_text_of_files_cannot_act_in_markdown(tmp_path):
    assert escape("a|b`<i>[x](y)*_#\\") == "a\\|b\\`\\<i\\>\\[x\\](y)\\*\\_\\#\\\\"
    assert "<b>" not in sheet(hostile(tmp_path))


def test_different_prompts_are_shown_escaped(tmp_path):
    key = Key(None, "logits")
    values = np.ones((2, 3), np.float32)
    a = write_trace(
        tmp_path / "a", {key: values}, tokens=[1, 2], pieces=[b"x", b"\x1b]0;x\x07"], prompt=HOSTILE
    )
    b = write_trace(tmp_path / "b", {key: values}, tokens=[1, 3], pieces=[b"x", b"\xff\xfe"])
    text = shown(compare(a, b))
    assert "\x1b" not in text
    assert "\\x1b]0;x\\x07" in text


def test_the_sheet_sets_our_values_beside_the_reference_s(faulty):
    text = sheet(faulty)
    for said in (
        "## Verdict: diverged",
        "| quantity | our value | reference value | NRMSE | status |",
        "## Values: layer 1, step 0 (prefill)",
        "| Q after RoPE |",
        "| \\|K\\|, mean over heads |",
        "| scores (what softmax sees): range |",
        "| m (softmax maximum) |",
        "| l (softmax sum) |",
        "| probabilities |",
        "**Scenario 4.**",
        "| C: wrong scale factor | yes |",
        "## Tensors in execution order",
    ):
        assert said in text
    scores = next(line for line in text.splitlines() if line.startswith("| scores (what softmax sees) |"))
    ours, theirs = (cell.split(",")[0] for cell in scores.split("|")[2:4])
    assert float(ours) == pytest.approx(4 * float(theirs), rel=1e-3)
    widths = {line.count("|") - line.count("\\|") for line in text.splitlines() if line.startswith("| Q")}
    assert widths == {6}


def test_sheets_of_every_outcome(record_tiny, tmp_path):
    trace = record_tiny()
    assert "## Verdict: match" in sheet(compare(trace, trace))
    assert "## Verdict: incomparable" in sheet(compare(trace, record_tiny(ids=[1, 2])))
    bos = compare(record_tiny(ids=[297, *PROMPT]), trace)
    assert "Cause: `tokens_bos`." in sheet(bos)
    only = {Key(None, "logits"): np.ones((2, 3), np.float32)}
    plain = sheet(compare(write_trace(tmp_path / "a", only), write_trace(tmp_path / "b", only)))
    assert "| logits | 1, 1, 1 | 1, 1, 1 | 0 | match |" in plain
