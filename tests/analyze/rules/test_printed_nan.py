from pathlib import Path

import pytest
from rule_traces import attention, found, skipped, write
from tensortrace.analyze.anomaly import find_anomalies
from tensortrace.tracer.importer import Options, import_dump
from tensortrace.tracer.trace import Trace

LOGS = Path(__file__).parents[2] / "golden" / "logs"


def log(tmp_path: Path, name: str, old: str = "", new: str = "") -> Trace:
    text = (LOGS / f"{name}.log").read_text()
    assert old in text
    (tmp_path / "a.log").write_text(text.replace(old, new, 1))
    import_dump(tmp_path / "a.log", tmp_path / "a.h5", Options())
    return Trace(tmp_path / "a.h5")


@pytest.mark.parametrize("path", sorted(LOGS.glob("*.log")), ids=lambda path: path.stem)
def test_a_healthy_log_is_quiet(tmp_path, path):
    """What was not printed is NaN in the trace and nothing is wrong with it; its ids are not known."""
    trace = log(tmp_path, path.stem)
    assert found(trace, "printed_nan") == []
    report = find_anomalies(trace)
    assert (report.findings, report.run) == ([], ["printed_nan"])
    assert report.skipped["probs_sum"].startswith("probs or probs.stats not recorded")


def test_a_printed_nan_is_told(tmp_path):
    row = "[     -0.3821,      -1.1928,       1.6918, ...,"
    trace = log(tmp_path, "2024-08-sum-of-printed", row, row.replace("-1.1928", "    nan"))
    assert found(trace, "printed_nan") == []  # its sum is a number, so the word was damaged, not the run
    trace = log(tmp_path, "2024-04-first-three", "-1.1928,   1.6918, ...]", "nan,   1.6918, ...]")
    (finding,) = found(trace, "printed_nan")
    assert (finding.tensor, finding.layer, finding.step, finding.value) == ("embd", None, 0, 1)


def test_a_sum_that_is_no_number(tmp_path):
    trace = log(tmp_path, "2026-03-common-debug", "sum = -3.540990", "sum = nan")
    (finding,) = found(trace, "printed_nan")
    assert "sum that is no number" in finding.message


def test_exact_traces_are_not_its_business(tmp_path):
    assert "log" in skipped(write(tmp_path / "t.h5", attention()), "printed_nan")
