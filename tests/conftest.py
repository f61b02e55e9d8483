"""Fixtures that all tests share: a real model, a tiny one, and traces recorded with it.

A test that needs more than the base package says so with a marker (`torch`, `llamacpp`, `gpu`, `nvcc`).
`make test` leaves those out and `.ci/run` runs them, but for `gpu`.  A marked test that then cannot run
fails: a skip would look like a pass.
"""

from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
from ggufs import write_gguf
from hypothesis import settings
from recording import record_trace
from tensortrace.kernels import native
from tensortrace.tracer import rows
from tensortrace.tracer.errors import ModelError
from tensortrace.tracer.gguf import Model
from tensortrace.tracer.hub import resolve
from tensortrace.tracer.trace import Trace

settings.register_profile("tests", deadline=None)  # time says nothing on a machine that others use, too
settings.load_profile("tests")


@pytest.fixture(params=[pytest.param("compiled", marks=pytest.mark.cxx), "numpy"])
def both_kernel_sets(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The test is run with the compiled kernels and, as where there is no compiler, without them."""
    if request.param == "numpy":
        monkeypatch.setattr(native, "LIBRARY", None)
        monkeypatch.setattr(rows, "LIBRARY", None)
    elif native.LIBRARY is None or rows.LIBRARY is None:
        pytest.fail("the compiled kernels are missing: install a C compiler, then the package again")
    return str(request.param)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The real model: SmolLM2-135M-Instruct in Q4_1, from the user's cache or fetched into it."""
    try:
        return resolve("smollm2-135m")
    except ModelError as error:
        pytest.fail(f"the tests need the model smollm2-135m (try `trace pull smollm2-135m`): {error}")


@pytest.fixture(scope="session")
def gemma3() -> Path:
    """Another real model, gemma3-270m in mixed types (Q4_K_M), from the user's cache or fetched into it."""
    try:
        return resolve("gemma3-270m")
    except ModelError as error:
        pytest.fail(f"this test needs the model gemma3-270m (try `trace pull gemma3-270m`): {error}")


@pytest.fixture(scope="session")
def smollm2_model(smollm2: Path) -> Model:
    return Model(smollm2)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer llama of random weights: four heads of 16 on two KV heads, 300 tokens."""
    return write_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf")


@pytest.fixture(scope="session")
def tiny_model(tiny: Path) -> Model:
    return Model(tiny)


@pytest.fixture
def record_tiny(tiny_model: Model, tmp_path: Path) -> Callable[..., Trace]:
    """Records the tiny model, as `recording.record_trace` takes it, and opens the trace."""
    number = count()

    def recorded(*args, **kwargs) -> Trace:
        path = tmp_path / f"tiny{next(number)}.h5"
        record_trace(tiny_model, path, *args, **kwargs)
        return Trace(path)

    return recorded
