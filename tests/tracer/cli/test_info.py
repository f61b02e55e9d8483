import json
from dataclasses import replace

import numpy as np
from commands import run
from rule_traces import HEADER, attention, write
from tensortrace.tracer.format import TensorSpec, plan_steps
from tensortrace.tracer.names import NAMES, Key
from tensortrace.tracer.writer import TraceWriter


def test_what_a_trace_is_of(record_tiny):
    trace = record_tiny(n_new=4)
    told = run("info", trace.path).out
    for part in ("cpu numpy", "random llama (llama)", "1 prefill, 3 decode; 13 tokens", "complete"):
        assert part in told
    assert "scores" in told
    assert "head,query,key" in told
    data = json.loads(run("info", trace.path, "--json", "-").out)
    assert (data["tokens"], data["steps"], data["complete"], data["injected"]) == (13, 4, True, "")
    q = next(entry for entry in data["tensors"] if entry["name"] == "q")
    assert q == {
        "name": "q",
        "axes": ["token", "head", "dim"],
        "dtype": "float32",
        "layers": "0-1",
        "bytes": 2 * 13 * 4 * 16 * 4,
    }


def test_bytes_of_growing_tensors(record_tiny):
    data = json.loads(run("info", record_tiny(n_new=3).path, "--json", "-").out)
    scores = next(entry for entry in data["tensors"] if entry["name"] == "scores")
    assert scores["bytes"] == 2 * 4 * 4 * (10 * 10 + 11 + 12)


def test_a_fault_that_was_put_in_shows(tmp_path):
    trace = write(tmp_path / "t.h5", attention(), header=replace(HEADER, injected="attn_scale@3=0.5"))
    assert "attn_scale@3=0.5 was put in" in run("info", trace.path).out


def test_how_far_an_interrupted_recording_got(tmp_path):
    spec = TensorSpec(Key(0, "q"), NAMES["q"].axes, {"head": 2, "dim": 4})
    writer = TraceWriter(tmp_path / "t.h5", HEADER, [spec], plan_steps(3, 4))
    writer.write(0, Key(0, "q"), np.zeros((3, 2, 4), np.float32))
    writer.end_step(0)
    writer.close()
    outcome = run("info", tmp_path / "t.h5")
    assert outcome.code == 0
    assert "incomplete: 1 of 4 steps were written" in outcome.out


def test_check(record_tiny):
    trace = record_tiny(n_new=2)
    assert "every checksum is right" in run("info", trace.path, "--check").out
    path, needle = trace.path, trace.read(Key(1, "q"), 0).tobytes()
    trace.close()
    data = bytearray(path.read_bytes())
    data[data.index(needle)] ^= 1
    path.write_bytes(data)
    outcome = run("info", path, "--check")
    assert outcome.code == 1
    assert "DAMAGED: L01 q of step 0" in outcome.out
    assert json.loads(run("info", path, "--check", "--json", "-").out)["damaged"]
    assert run("info", path).code == 0


def test_texts_are_escaped(tmp_path):
    odd = replace(HEADER, prompt="[red]\x1b[2J\u202ehi\n", model_name="\x07[b]m")
    arrays = {"[i]\x1b]0;x": np.zeros((12, 4), np.float32)}
    declared = {"[i]\x1b]0;x": {"axes": ("token", "dim")}}
    trace = write(tmp_path / "t.h5", arrays, header=odd, declared=declared)
    for command in ("info", "ls"):
        told = run(command, trace.path).out
        assert "\x1b" not in told
        assert "\x07" not in told
        assert "[i]\\x1b]0;x" in told
    assert "“[red]\\x1b[2J\\u202ehi\\n”" in run("info", trace.path).out
