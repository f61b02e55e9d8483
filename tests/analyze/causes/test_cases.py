"""Every cause carries its own cases: injections it must be named for, and others it must not be.

The fault is put into one run, and found again by comparing its trace with a healthy one.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import zoo
from recording import record_trace
from tensortrace.analyze.cause import Cause, Injection, causes
from tensortrace.analyze.compare import Comparison, compare
from tensortrace.analyze.find import name_causes
from tensortrace.tracer.architecture import build_graph
from tensortrace.tracer.gguf import Model
from tensortrace.tracer.trace import Trace

OPS = {name: cause for name, cause in causes().items() if type(cause).change is not Cause.change}
FIRES = [(name, text) for name, cause in OPS.items() for text in cause.fires]
QUIET = [(name, text) for name, cause in OPS.items() for text in cause.quiet]
IDS = tuple(int(token) for token in np.random.default_rng(1).integers(97, 250, 24))
RUN = {"ids": IDS, "n_new": 4, "tile": 8}

Named = Callable[[tuple[str, ...], str], Comparison]


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Named:
    """Compares a run with a fault in it with one without, and names the cause; each once."""
    folder = tmp_path_factory.mktemp("zoo")

    @cache
    def healthy(needs: tuple[str, ...]) -> tuple[Model, Trace]:
        name = "-".join(("m", *needs))
        model = Model(zoo.write(folder / f"{name}.gguf", needs))
        record_trace(model, folder / f"{name}.h5", **RUN)
        return model, Trace(folder / f"{name}.h5")

    @cache
    def find(needs: tuple[str, ...], text: str) -> Comparison:
        model, reference = healthy(needs)
        path = folder / "faulty.h5"
        path.unlink(missing_ok=True)
        ids = [*reference.tokens.tolist()]
        request = RUN | {"ids": ids[: len(IDS)]}
        record_trace(model, path, change=Injection.parse(text).apply, **request)
        with Trace(path) as ours:
            return name_causes(compare(ours, reference), ours, reference, model)

    return find


def best(comparison: Comparison) -> set[str]:
    """The causes named first: several where they cannot be told apart."""
    top = comparison.causes[0]
    return {top.id, *(cause.id for cause in comparison.causes if cause.confidence == top.confidence)}


def test_every_cause_has_cases() -> None:
    for name, cause in OPS.items():
        assert cause.fires, f"{name} has no case in which it must be named"
        assert cause.quiet, f"{name} has no case in which it must not be named"
        assert all(Injection.parse(text).cause.id == name for text in cause.fires)
        assert all(Injection.parse(text).cause.id != name for text in cause.quiet)


@pytest.mark.parametrize(("name", "text"), FIRES, ids=[text for _, text in FIRES])
def test_it_fires(named: Named, name: str, text: str) -> None:
    found = named(OPS[name].needs, text)
    assert found.exit_code == 1
    assert found.causes[0].id == name, found.causes
    assert found.causes[0].confidence >= 0.9


@pytest.mark.parametrize(("name", "text"), QUIET, ids=[f"{name}-{text}" for name, text in QUIET])
def test_it_stays_quiet(named: Named, name: str, text: str) -> None:
    """Another fault is put in: it may be listed after the right one, but not be named first."""
    cause = Injection.parse(text).cause
    needs = tuple(dict.fromkeys((*OPS[name].needs, *cause.needs)))
    found = named(needs, text)
    assert found.exit_code == 1
    assert found.causes[0].id == cause.id, found.causes


def test_faults_fit_the_small_model(named: Named, tmp_path: Path) -> None:
    """Every default injection changes something somewhere: `trace record --inject CAUSE` just works."""
    for name, cause in OPS.items():
        model = Model(zoo.write(tmp_path / f"{name}.gguf", cause.needs))
        graph = build_graph(model)
        faulty = Injection.parse(cause.fires[0].partition("@")[0]).apply(graph)
        assert faulty.ops != graph.ops, name
