"""Logs against exact traces: real ones of llama.cpp (tests/golden/logs), and small ones made here."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from ggufs import write_gguf
from recording import record_trace
from rich.console import Console
from rule_traces import write
from tensortrace.analyze.anomaly import find_anomalies
from tensortrace.analyze.cause import Injection
from tensortrace.analyze.compare import Comparison, compare
from tensortrace.analyze.find import name_causes
from tensortrace.analyze.markdown import sheet
from tensortrace.analyze.report import render
from tensortrace.tracer.gguf import Model
from tensortrace.tracer.importer import Options, import_dump
from tensortrace.tracer.names import Key
from tensortrace.tracer.trace import Trace

LOGS = Path(__file__).parents[1] / "golden" / "logs"
NAMES = sorted(path.stem for path in LOGS.glob("20*.log"))
IDS = (84, 104, 101, 32, 259, 260, 271, 97)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    path = tmp_path_factory.mktemp("model") / "logs.gguf"
    return Model(write_gguf(path, layers=1, heads=4, kv_heads=2, head_dim=8, ff=40))


@pytest.fixture(scope="module")
def exact(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Trace:
    path = tmp_path_factory.mktemp("exact") / "exact.h5"
    record_trace(model, path, IDS, n_new=2)
    return Trace(path)


def log(path: Path, model: Model, output: Path, **options) -> Trace:
    import_dump(path, output, Options(model=model, **options))
    return Trace(output)


def edited(name: str, tmp_path: Path, *changes: tuple[str, str]) -> Path:
    text = (LOGS / f"{name}.log").read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    path = tmp_path / "edited.log"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", NAMES)
def test_a_log_and_the_exact_trace_of_the_run_are_equal(
    name: str, model: Model, exact: Trace, tmp_path: Path
) -> None:
    trace = log(LOGS / f"{name}.log", model, tmp_path / "log.h5")
    for found in (compare(exact, trace), compare(trace, exact)):
        assert (found.verdict, found.exit_code) == ("rounding", 0), found.sentence
        assert "within the printed precision" in found.sentence
        assert any("is a log that shows" in note for note in found.notes)
        assert any("does not tell the ids" in note for note in found.notes)
        rows = found.rows()
        assert len(rows) >= 9
        assert all(0 < row.values <= row.of for row in rows)
        assert {row.status for row in rows} == {"rounding"}  # printed digits never make a match
        assert max(row.nrmse for row in rows) < 1e-5
        partial = next(row for row in rows if row.key == Key(None, "embd"))
        assert partial.of == 8 * 32
        assert (partial.values < partial.of) == ("full" not in name)
        json.dumps(found.to_json(), allow_nan=False)


@pytest.mark.parametrize("name", NAMES)
def test_a_log_of_a_model_that_nobody_names(name: str, exact: Trace, tmp_path: Path) -> None:
    """Then nothing tells that its weights are float32, or how heads share a row: less is known."""
    import_dump(LOGS / f"{name}.log", tmp_path / "log.h5", Options())
    with Trace(tmp_path / "log.h5") as trace:
        for found in (compare(exact, trace), compare(trace, exact)):
            assert found.exit_code == 0, found.sentence
            assert found.coverage["incomparable"] == 0
            assert max(row.nrmse for row in found.rows()) < 1e-5


FAULTS = {  # and what shows it, the first that a log has (some are shortened)
    "rope_pairing": ("q_rope",),
    "attn_scale=0.6": ("scores", "probs", "attn"),
    "norm_eps=0.01": ("attn_norm",),
}
SHORTEST, ALWAYS = "2026-01-sum-and-sum-sq", ("rope_pairing",)  # it ends before the first scores


CAUGHT = [(fault, name) for fault in FAULTS for name in NAMES if fault in ALWAYS or name != SHORTEST]


@pytest.mark.parametrize(("fault", "name"), CAUGHT)
def test_a_faulty_run_is_caught_by_a_log(fault: str, name: str, model: Model, tmp_path: Path) -> None:
    record_trace(model, tmp_path / "bad.h5", IDS, n_new=2, change=Injection.parse(fault).apply)
    trace = log(LOGS / f"{name}.log", model, tmp_path / "log.h5")
    first = next(key for tensor in FAULTS[fault] if (key := Key(0, tensor)) in trace)
    with Trace(tmp_path / "bad.h5") as bad:
        for found in (compare(bad, trace), compare(trace, bad)):
            assert (found.exit_code, found.first.key) == (1, first), found.sentence
            assert any("values were printed and compared" in text for text in found.evidence)


SMALLEST = "     -0.3821,      -1.1928,"


def test_one_printed_value_decides(model: Model, exact: Trace, tmp_path: Path) -> None:
    """A last digit more or less is printing; ten of them in one value is not."""
    for new, code in (("-0.3822", 1), ("-0.3821", 0), ("-0.3831", 1), ("    nan", 1)):
        path = edited("2025-09-sum-of-all", tmp_path, (SMALLEST, SMALLEST.replace("-0.3821", new)))
        if "nan" in new:
            path = edited(
                "2025-09-sum-of-all",
                tmp_path,
                (SMALLEST, SMALLEST.replace("-0.3821", new)),
                ("sum = ", "sum = nan "),
            )
            path.write_text(path.read_text().replace("sum = nan -3.540990", "sum = nan"))
        found = compare(exact, log(path, model, tmp_path / "a.h5"))
        assert found.exit_code == code, (new, found.sentence)
        if code:
            assert found.first.key == Key(None, "embd")


def test_a_sum_catches_what_was_not_printed(model: Model, exact: Trace, tmp_path: Path) -> None:
    for new, code in (("sum = -3.540991", 0), ("sum = -3.5", 1), ("sum = nan", 1)):
        path = edited("2025-09-sum-of-all", tmp_path, ("sum = -3.540990", new))
        found = compare(exact, log(path, model, tmp_path / "a.h5"))
        assert found.exit_code == code
        if code:
            assert found.first.key == Key(None, "embd")
            assert any("the sum over 256 values" in text for text in found.evidence)


def test_two_logs(model: Model, tmp_path: Path) -> None:
    a, b = (log(LOGS / f"{name}.log", model, tmp_path / name) for name in NAMES[1:3])
    assert compare(a, b).exit_code == 0
    changed = edited("2025-09-sum-of-all", tmp_path, ("sum = -3.540990", "sum = 9.540990"))
    c = log(changed, model, tmp_path / "c.h5")
    d = log(LOGS / "2026-03-common-debug.log", model, tmp_path / "d.h5")
    assert compare(c, a).exit_code == 0  # the older printer's sum is that of the printed values
    assert compare(c, d).first.key == Key(None, "embd")


def test_steps_that_begin_later_and_known_ids(model: Model, exact: Trace, tmp_path: Path) -> None:
    decode = log(LOGS / "2026-03-common-debug.log", model, tmp_path / "a.h5", steps="1")
    assert decode.steps[0].start == 8
    found = compare(exact, decode)
    assert found.exit_code == 0, found.sentence
    assert {row.step for row in found.rows()} == {1}
    wrong = log(
        LOGS / "2026-03-common-debug.log", model, tmp_path / "b.h5", tokens=(1, 2, 3, 4, 5, 6, 7, 8, 9)
    )
    refused = compare(exact, wrong)
    assert (refused.exit_code, refused.coverage["compared"]) == (2, 0)


def test_a_log_of_sums_alone_compares_nothing(model: Model, exact: Trace, tmp_path: Path) -> None:
    text = (LOGS / "2026-03-common-debug.log").read_text().splitlines(keepends=True)
    kept = [line for line in text if "common_debug" in line or "sum =" in line]
    (tmp_path / "sums.log").write_text("".join(kept))
    found: Comparison = compare(exact, log(tmp_path / "sums.log", model, tmp_path / "a.h5"))
    assert found.exit_code == 2
    assert found.coverage["compared"] == 0


def test_reports_tell_what_is_partial(model: Model, exact: Trace, tmp_path: Path) -> None:
    found = compare(exact, log(LOGS / "2026-03-common-debug.log", model, tmp_path / "a.h5"))
    told = render_plain(found)
    assert "36 of 256" in told
    assert "values" in told
    row = next(row for row in found.to_json()["tensors"] if row["tensor"] == "embd")
    assert (row["values"], row["of"]) == (36, 256)
    text = sheet(found)
    assert "36 of 256" in text
    assert "nan" not in text
    assert " values" not in render_plain(compare(exact, exact)).split("nrmse", 1)[1].split("\n", 1)[0]


def render_plain(found: Comparison) -> str:
    console = Console(width=120, file=io.StringIO())
    console.print(render(found))
    return console.file.getvalue()


def test_magnitudes_are_estimated_from_what_was_printed(model: Model, exact: Trace, tmp_path: Path) -> None:
    trace = log(LOGS / "2026-03-common-debug.log", model, tmp_path / "a.h5")
    found = compare(exact, trace)
    row = next(row for row in found.rows() if row.key == Key(0, "q"))
    true = np.linalg.norm(exact.read(Key(0, "q"), 0), axis=-1).mean()
    assert row.mag_a == pytest.approx(row.mag_b, rel=1e-3)
    assert row.mag_a == pytest.approx(true, rel=0.3)


def test_the_cause_is_named_where_a_log_is_the_reference(model: Model, tmp_path: Path) -> None:
    record_trace(model, tmp_path / "bad.h5", IDS, n_new=2, change=Injection.parse("rope_pairing").apply)
    trace = log(LOGS / "2026-03-common-debug.log", model, tmp_path / "log.h5")
    with Trace(tmp_path / "bad.h5") as bad:
        named = name_causes(compare(bad, trace), bad, trace, model)
        assert named.causes[0].id == "rope_pairing"
        other = name_causes(
            compare(trace, bad), trace, bad, model
        )  # ours is the log: it is the other's fault
        assert other.causes[0].id == "rope_pairing"


@pytest.mark.parametrize(
    "said",
    [
        {"nan": 3, "sum": [1], "computed_rows": "x", "rounding": "much"},
        {"nan": {"0": ["a", -1, 10**9, True]}, "sum": {"0": "what"}, "computed_rows": {"0": -2}},
        {"nan": {"0": 7}, "sum": {"0": None}, "sum_sq": {"0": {}}, "rounding": -1},
        {"rounding": float("inf"), "computed_rows": {"0": 99}, "sum": {"0": 1e400}},
    ],
)
def test_conventions_that_make_no_sense_do_no_harm(tmp_path: Path, said: dict) -> None:
    arrays = {"resid_out": np.ones((12, 4), np.float32)}
    told = {"resid_out": {"conventions": {"partial": True, "sum_of": "all", **said}}}
    odd, plain = write(tmp_path / "a.h5", arrays, declared=told), write(tmp_path / "b.h5", arrays)
    for a, b in ((odd, plain), (plain, odd), (odd, odd)):
        assert compare(a, b).coverage["compared"] == 1
    assert find_anomalies(odd).run
