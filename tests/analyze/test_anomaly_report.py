import io
import re

import numpy as np
import pytest
from rich.console import Console
from rule_traces import HEADER, attention, write
from tensortrace.analyze.anomaly import find_anomalies
from tensortrace.analyze.anomaly_report import print_report
from tensortrace.analyze.cause import Injection
from tensortrace.tracer.format import TensorSpec, plan_steps
from tensortrace.tracer.names import NAMES, Key
from tensortrace.tracer.trace import Trace
from tensortrace.tracer.writer import TraceWriter


def printed(report, width: int = 160) -> str:
    console = Console(file=io.StringIO(), width=width, markup=False, highlight=False, emoji=False)
    print_report(report, console)
    return console.file.getvalue()


def test_a_fault_with_its_place_and_figures(record_tiny, tiny_model):
    trace = record_tiny(n_new=4, change=Injection.parse("norm_plus_one@1").apply)
    text = printed(find_anomalies(trace, None, tiny_model))
    assert "L01 attn_norm" in text
    assert re.search(r"error +L01 attn_norm +attn_norm has an rms of [\d.]+ once its gain", text)
    assert "expected: 1" in text
    assert "The first in execution order is at L01 attn_norm of step 0 (norm_gain)" in " ".join(text.split())
    assert re.search(r"magnitude_baseline, .*prompt_independence: needs --baseline", " ".join(text.split()))


@pytest.mark.parametrize("width", [80, 100, 160])
def test_it_fits(record_tiny, tiny_model, width):
    trace = record_tiny(n_new=6, change=Injection.parse("norm_plus_one").apply)
    lines = printed(find_anomalies(trace, record_tiny(n_new=6), tiny_model), width).splitlines()
    assert max(map(len, lines)) <= min(width, 100)


def test_a_clean_bill(record_tiny):
    text = printed(find_anomalies(record_tiny(n_new=3)))
    assert re.search(r"Nothing wrong: \d+ rules found no error and no warning\.", text)


def test_nothing_judged(tmp_path):
    spec = TensorSpec(Key(None, "logits"), NAMES["logits"].axes, {"vocab": 8})
    TraceWriter(tmp_path / "t.h5", HEADER, [spec], plan_steps(3, 2)).close()
    text = printed(find_anomalies(Trace(tmp_path / "t.h5")))
    assert "Nothing could be judged" in text
    assert "incomplete" in text


def test_names_are_escaped(tmp_path):
    odd = np.full((12, 8), np.nan, np.float32)
    trace = write(
        tmp_path / "t.h5",
        attention() | {"[red]\x1b[2J": odd},
        declared={"[red]\x1b[2J": {"axes": ("token", "dim")}},
    )
    text = printed(find_anomalies(trace))
    assert "[red]\\x1b[2J" in text
    assert "\x1b" not in text
