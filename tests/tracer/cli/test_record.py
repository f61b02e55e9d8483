"""`trace record` says nothing of a run that is not so."""

from pathlib import Path

import pytest
from tensortrace.tracer.cli.record import _settings, command
from tensortrace.tracer.errors import UserError


@pytest.mark.parametrize("engine", ["llama.cpp", "torch"])
def test_a_fault_is_refused_where_it_would_not_be_put_in(tiny: Path, tmp_path: Path, engine: str) -> None:
    output = tmp_path / "a.h5"
    with pytest.raises(UserError, match="--inject needs an engine that runs our own operations"):
        command(str(tiny), prompt="the", engine=engine, inject="attn_scale", output=output)
    assert not output.exists()


def test_softmax_is_stated_only_where_our_kernels_run() -> None:
    assert _settings("cpu", "online", 64, None) == {"chunk": None, "softmax": "online", "tile": 64}
    assert _settings("llama.cpp", "online", 64, 8) == {"chunk": 8}
