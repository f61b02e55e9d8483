"""Whatever a file says its tensors are and hold, verify ends in a verdict, or in one clear line."""

import json
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tensortrace.analyze.find import verify_and_explain
from tensortrace.analyze.verify import Verification
from tensortrace.analyze.verify_report import sheet
from tensortrace.tracer.architecture import build_graph
from tensortrace.tracer.errors import UserError
from tensortrace.tracer.format import Header, TensorSpec, plan_steps
from tensortrace.tracer.gguf import Model
from tensortrace.tracer.names import NAMES, Key
from tensortrace.tracer.plan import tensor_specs
from tensortrace.tracer.trace import Trace
from tensortrace.tracer.writer import TraceWriter

VALUES = hnp.arrays(np.float32, 64, elements=st.floats(width=32))
ODD = [
    TensorSpec(Key(0, "q"), ("token", "head", "dim"), {"head": 3, "dim": 16}),
    TensorSpec(Key(0, "q"), ("token", "dim"), {"dim": 64}),
    TensorSpec(Key(0, "scores"), ("query", "key"), {}),
    TensorSpec(Key(1, "m"), ("head", "query"), {"head": 1}),
    TensorSpec(Key(None, "logits"), ("token",), {}),
    TensorSpec(Key(0, "k.stats"), ("token", "stat"), {"stat": 6}),
    TensorSpec(Key(7, "attn"), ("token", "x\x1b"), {"x\x1b": 2}),
]
CONVENTIONS = [{}, {"partial": True, "rounding": 0.5e-4}, {"rows": "last"}, {"pairing": "half-split"}]


@st.composite
def recordings(draw, model: Model):
    right = tensor_specs(build_graph(model, tile=3), build_graph(model).outputs, "float32")
    chosen = draw(
        st.lists(st.sampled_from([*right, *ODD]), min_size=1, max_size=8, unique_by=lambda s: s.key)
    )
    dtypes = st.sampled_from(["float32", "float16", "bfloat16", "float64"])
    specs = [
        TensorSpec(s.key, s.axes, s.sizes, draw(dtypes), conventions=draw(st.sampled_from(CONVENTIONS)))
        for s in chosen
    ]
    steps = plan_steps(draw(st.integers(1, 7)), draw(st.integers(1, 4)), draw(st.sampled_from([None, 2])))
    recorded = draw(st.sampled_from([None, None, [0], [steps[-1].kv_len - 1]]))
    tokens = draw(st.sampled_from([0, 1, 30, -1]))
    return specs, steps, draw(st.integers(0, len(steps))), recorded, draw(VALUES), tokens


def outcome(trace: Trace, model: Model) -> Verification | UserError:
    try:
        return verify_and_explain(trace, model)
    except UserError as error:
        return error


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_recording_crashes_it(tmp_path: Path, tiny_model: Model, data: st.DataObject) -> None:
    specs, steps, done, recorded, values, token = data.draw(recordings(tiny_model))
    path = tmp_path / "t.h5"
    header = Header("x", architecture="llama", settings={"tile": 3})
    with TraceWriter(path, header, specs, steps, recorded=recorded) as writer:
        writer.write_tokens(0, [token * index for index in range(steps[-1].kv_len)])
        for step in steps[:done]:
            for spec in specs:
                with np.errstate(all="ignore"):
                    shape = spec.shape(step.n_tokens, step.kv_len)
                    writer.write(step.index, spec.key, np.resize(values, shape))
            writer.end_step(step.index)
    with Trace(path) as trace:
        found = outcome(trace, tiny_model)
    if isinstance(found, UserError):
        assert "holds no finished step" in str(found)
        return
    assert found.exit_code == {"match": 0, "rounding": 0, "diverged": 1, "incomparable": 2}[found.verdict]
    assert (found.exit_code == 2) == (found.coverage["compared"] == 0)
    json.dumps(found.to_json(), allow_nan=False)
    assert "\x1b" not in sheet(found)


def test_every_name_of_the_vocabulary_has_axes_that_it_knows() -> None:
    """`samples` looks for the axis of rows by name."""
    assert all({"token", "query"} & set(entry.axes) for entry in NAMES.values())
