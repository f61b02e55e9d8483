"""A trace with flipped or missing bytes: it opens, or one line says why not.  Never another error."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recording import record_trace
from tensortrace.tracer.errors import TraceError
from tensortrace.tracer.repack import compress
from tensortrace.tracer.trace import Trace


@pytest.fixture(scope="module", params=["plain", "compressed"])
def whole(request: pytest.FixtureRequest, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("fuzz") / "whole.h5"
    record_trace(tiny, path, [1, 2, 3, 4], n_new=2, storage="bfloat16", piece=lambda token: b"x")
    if request.param == "compressed":
        compress(path)
    return path.read_bytes()


def read_everything(path: Path) -> None:
    with Trace(path) as trace:
        list(trace.damaged())
        assert trace.tokens.size == len(trace.pieces) >= trace.prompt_ids.size
        for step in trace.steps:
            for key in trace.tensors:
                if trace.has(key, step.index):
                    trace.read(key, step.index)


def survives(data: bytes, path: Path) -> None:
    path.write_bytes(data)
    message = ""
    try:
        read_everything(path)
    except TraceError as error:
        message = str(error)
    assert "\n" not in message


quietly = settings(
    max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@quietly
@given(data=st.data())
def test_truncated_anywhere(whole: bytes, tmp_path: Path, data: st.DataObject) -> None:
    survives(whole[: data.draw(st.integers(0, len(whole) - 1))], tmp_path / "cut.h5")


@pytest.mark.parametrize("reach", [4_000, 40_000, None], ids=["start", "structure", "anywhere"])
@quietly
@given(data=st.data())
def test_flipped_anywhere(whole: bytes, tmp_path: Path, reach: int | None, data: st.DataObject) -> None:
    last = min(reach or len(whole), len(whole)) - 1
    places = st.lists(st.tuples(st.integers(0, last), st.integers(0, 255)), min_size=1, max_size=20)
    damaged = bytearray(whole)
    for place, value in data.draw(places):
        damaged[place] = value
    survives(bytes(damaged), tmp_path / "flipped.h5")


def test_the_whole_is_sound(whole: bytes, tmp_path: Path) -> None:
    (tmp_path / "whole.h5").write_bytes(whole)
    read_everything(tmp_path / "whole.h5")
