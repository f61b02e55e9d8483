import json

import numpy as np
import pytest
from commands import run
from rule_traces import write
from tensortrace.tracer.names import Key


@pytest.fixture
def trace(record_tiny):
    return record_tiny(n_new=3)


@pytest.mark.parametrize("name", ["L01 q", "l01.q", "layers/01/q", "/layers/01/q", "1.q", "L1 q", "01.q"])
def test_names(trace, name):
    assert run("show", trace.path, name).out.startswith(
        "L01 q, step 0 (prefill): token 10, head 4, dim 16; float32"
    )


def test_layer_and_step(trace):
    assert run("show", trace.path, "q").out.startswith("L00 q, step 0")
    assert run("show", trace.path, "q", "--layer", "1", "--step", "2").out.startswith(
        "L01 q, step 2 (decode)"
    )
    assert run("show", trace.path, "logits").out.startswith("logits, step 0")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("qq",), "no tensor qq (is q meant?)"),
        (("zzzz",), "`trace ls` lists"),
        (("q", "--layer", "7"), "no q in layer 7"),
        (("1.q", "--layer", "0"), "is in layer 1, --layer says 0"),
        (("q", "--step", "9"), "steps 0 to 2"),
        (("q", "--slice", "0,0,0,0"), "has 4 parts; the axes are token, head, dim"),
        (("q", "--slice", "a"), "'a' is neither"),
        (("q", "--slice", "::0"), "'::0' is neither"),
        (("q", "--slice", "10"), "token has 10 entries"),
        (("q", "--slice", "0,-5"), "head has 4 entries"),
        (("q", "--slice", "__import__('os')"), "is neither"),
        (("q", "--slice", "1:2:3:4"), "is neither"),
    ],
)
def test_mistakes_are_one_line(trace, arguments, message):
    outcome = run("show", trace.path, *arguments)
    assert (outcome.code, len(outcome.err.splitlines())) == (2, 1)
    assert message in outcome.err


@pytest.mark.parametrize("part", ["0", ":", "::3", "-1,:,:8", "2:5,0,::-1", ":4,1:3", "0,0,0", "5:5"])
def test_slices_are_numpy_s(trace, part):
    data = json.loads(run("show", trace.path, "1.q", "--slice", part, "--json", "-").out)
    index = tuple(eval(f"np.s_[{piece}]") for piece in part.split(","))
    wanted = trace.read(Key(1, "q"), 0)[index]
    assert data["shape"] == list(wanted.shape)
    np.testing.assert_array_equal(np.array(data["values"], np.float32).reshape(wanted.shape), wanted)
    assert run("show", trace.path, "1.q", "--slice", part).code == 0


def test_statistics(tmp_path):
    values = np.arange(24, dtype=np.float32).reshape(12, 2)
    values[3, 0], values[4, 1] = np.nan, -np.inf
    trace = write(tmp_path / "t.h5", {"embd": values}, dtype="bfloat16")
    told = run("show", trace.path, "embd").out
    assert "min 0  max 23" in told
    assert "zero 1  nan 1  inf 1" in told
    data = json.loads(run("show", trace.path, "embd", "--json", "-").out)
    assert (data["statistics"]["nan"], data["values"][3][0]) == (1, None)


def test_rows_are_named_by_their_tokens(tmp_path):
    trace = write(tmp_path / "t.h5", {"embd": np.zeros((12, 3), np.float32)})
    told = run("show", trace.path, "embd").out
    assert "token \\ dim" in told
    assert "11  w111" in told
    assert " w" not in run("show", trace.path, "embd", "--slice", "::2").out


def test_statistics_of_a_run_recorded_without_tensors(record_tiny):
    trace = record_tiny(n_new=2, stats_only=True)
    assert run("show", trace.path, "1.q.l2").out.startswith("L01 q.l2, step 0 (prefill): token 10, head 4")
    assert run("show", trace.path, "scores.stats", "--step", "1").code == 0


def test_what_a_log_does_not_show_is_told(tmp_path):
    from pathlib import Path

    from tensortrace.tracer.importer import Options, import_dump

    log = Path(__file__).parents[2] / "golden" / "logs" / "2026-03-common-debug.log"
    import_dump(log, tmp_path / "a.h5", Options())
    assert "not printed in the log" in run("show", tmp_path / "a.h5", "embd").out
