"""Streams: what the recorder cannot write but an engine can."""

from pathlib import Path

import numpy as np
from dumps import import_or_refuse, refused
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensortrace.tracer.importer import Options, import_dump
from tensortrace.tracer.names import Key
from tensortrace.tracer.stream import StreamWriter
from tensortrace.tracer.trace import Trace


def write(path: Path, **meta: object) -> Path:
    with StreamWriter(path, {"engine": "mine", **meta}) as stream:
        for rows in (3, 1):
            stream.tensor(0, "inp_embd", np.full((rows, 8), rows, np.float32))
            stream.tensor(0, "Qcur", np.full((rows, 32), rows, np.float32), layer=0)
            stream.tensor(0, "my own", np.full((rows, 2), rows, np.float32), layer=0)
    return path


def test_without_announced_steps_a_name_that_comes_again_begins_one(tmp_path: Path) -> None:
    done = import_dump(write(tmp_path / "a.ttr", heads=4, kv_heads=2), tmp_path / "a.h5", Options())
    assert done.own_names == ("my own",)
    with Trace(tmp_path / "a.h5") as trace:
        assert [(step.phase, step.n_tokens) for step in trace.steps] == [("prefill", 3), ("decode", 1)]
        assert trace.tensors[Key(0, "q")].source == "Qcur"
        assert trace.read(Key(0, "q"), 0).shape == (3, 4, 8)


def test_odd_facts_do_no_harm(tmp_path: Path) -> None:
    for number, facts in enumerate(
        (
            {"heads": "9" * 5000},
            {"heads": "-3"},
            {"tile": "x"},
            {"settings": "["},
            {"settings": "[" * 9999},
            {"x": 1},
        )
    ):
        import_dump(write(tmp_path / f"{number}.ttr", **facts), tmp_path / "a.h5", Options())


def test_a_step_that_was_not_announced(tmp_path: Path) -> None:
    with StreamWriter(tmp_path / "a.ttr", {}) as stream:
        stream.step(0, [1, 2])
        for _ in range(2):
            stream.tensor(0, "embd", np.ones((2, 4), np.float32))
    refused(tmp_path / "a.ttr", "announce each forward pass as a step")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.integers(0, 3),
            st.sampled_from(["q", "scores", "embd", "mine", "m_tiles", "\n", "layers.5"]),
            st.lists(st.integers(0, 4), max_size=4),
            st.none() | st.integers(0, 2),
            st.sampled_from([(), ("token",), ("token", "dim"), ("", ""), ("key+", "batch", "head*dim")]),
        ),
        max_size=6,
    )
)
def test_any_tensors(tmp_path: Path, records: list) -> None:
    path = tmp_path / "x.ttr"
    path.unlink(missing_ok=True)
    with StreamWriter(path, {}) as stream:
        for step, name, shape, layer, axes in records:
            stream.tensor(step, name, np.ones(shape, np.float32), layer=layer, axes=axes)
    import_or_refuse(path)
