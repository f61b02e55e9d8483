"""What other engines would have left of a run that we recorded: its tensors, to be dumped and imported."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recording import nrmse
from tensortrace.tracer.errors import UserError
from tensortrace.tracer.importer import Options, import_dump
from tensortrace.tracer.names import Key
from tensortrace.tracer.trace import Trace

NAMES = ("embd", "attn_norm", "q", "v", "scores", "m", "attn_out", "logits")  # one of each kind of layout


def tensors(trace: Trace) -> Iterator[tuple[int, Key, np.ndarray]]:
    """Step, key and values of some tensors of every kind."""
    for step in trace.flushed:
        for key in trace.tensors:
            if key.name in NAMES:
                yield step.index, key, np.array(trace.read(key, step.index))


def import_and_compare(source: Path, trace: Trace, **options: Any) -> Trace:
    """Import what `tensors(trace)` was dumped to: it must come back as it was."""
    path = source.parent / f"{source.name}.imported.h5"
    import_dump(source, path, Options(**options))
    imported = Trace(path)
    assert [(step.start, step.n_tokens) for step in imported.steps] == [
        (step.start, step.n_tokens) for step in trace.steps
    ]
    for step, key, values in tensors(trace):
        assert imported.tensors[key].axes == trace.tensors[key].axes, key
        assert nrmse(imported.read(key, step), values) == 0, (step, key)
    assert len(imported.tensors) == len({key for _, key, _ in tensors(trace)})
    return imported


def import_or_refuse(source: Path, **options: Any) -> bool:
    """Import damaged input: either a valid trace (True) or a UserError of one line and no file (False)."""
    path = source.parent / "damaged.h5"
    path.unlink(missing_ok=True)
    try:
        import_dump(source, path, Options(**options))
    except UserError as error:
        message = str(error)
        assert message.strip(), "an error without a message"
        assert "\n" not in message, message
        assert not path.exists(), "an error, and a file"
        return False
    with Trace(path) as trace:
        assert list(trace.damaged()) == []
    return True


def refused(source: Path, message: str, **options: Any) -> None:
    """The import must fail with a UserError that matches `message`, and leave no file."""
    path = source.parent / "refused.h5"
    with pytest.raises(UserError, match=message):
        import_dump(source, path, Options(**options))
    assert not path.exists()
