"""Traces that hold the same numbers in another order of heads or elements, and those that don't."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from tensortrace.analyze.arrangement import KEY_HEADS, QUERY_HEADS
from tensortrace.analyze.cause import Injection
from tensortrace.analyze.compare import compare
from tensortrace.analyze.fitted import PAIRED
from tensortrace.tracer.names import Key
from tensortrace.tracer.selection import Selection
from tensortrace.tracer.trace import Trace
from tensortrace.tracer.writer import TraceWriter

Record = Callable[..., Trace]
Change = Callable[[Key, np.ndarray], np.ndarray]
HEADS = np.array([3, 2, 0, 1])  # of queries: both KV groups change places, one of them within, too
KV_HEADS = np.array([1, 0])


def changed(trace: Trace, change: Change) -> Trace:
    """A copy of a recording, as an engine with another layout would have made it."""
    path = trace.path.with_name(f"changed_{trace.path.name}")
    specs = [replace(spec, conventions={}) for spec in trace.tensors.values()]
    with TraceWriter(path, trace.header, specs, trace.steps) as writer:
        for step in trace.steps:
            writer.write_tokens(step.start, trace.tokens[step.start : step.kv_len])
            for spec in specs:
                writer.write(step.index, spec.key, change(spec.key, trace.read(spec.key, step.index)))
            writer.end_step(step.index)
        writer.finish()
    return Trace(path)


def half_split(key: Key, array: np.ndarray) -> np.ndarray:
    if key.name not in PAIRED:
        return array
    return np.concatenate([array[..., ::2], array[..., 1::2]], -1)


def other_heads(key: Key, array: np.ndarray) -> np.ndarray:
    index = HEADS if key.name in QUERY_HEADS else KV_HEADS if key.name in KEY_HEADS else None
    joined = key.name in ("attn", *PAIRED, "v")
    axis = 1 if joined or key.name.endswith("_tiles") else 0
    return array if index is None else np.take(array, index, axis)


def both(key: Key, array: np.ndarray) -> np.ndarray:
    return other_heads(key, half_split(key, array))


@pytest.mark.parametrize("change", [half_split, other_heads, both])
@pytest.mark.parametrize("tensors", [None, "q,k", "q_rope,k_rope,scores,attn_out"])
def test_another_order_is_undone(record_tiny: Record, change: Change, tensors: str | None) -> None:
    selection = Selection(tensors=tensors)
    ours = changed(record_tiny(n_new=4, dtype="float64", selection=selection, tile=4), change)
    reference = record_tiny(n_new=4, selection=selection, tile=4)
    for a, b in ((ours, reference), (reference, ours)):
        found = compare(a, b)
        assert found.verdict == "rounding"
        assert found.coverage["only_a"] == found.coverage["only_b"] == 0
        assert any("in another order in 2 layers" in note for note in found.notes)
        assert found.to_json()["verdict"] == "rounding"


def test_a_fault_shows_through_another_order(record_tiny: Record) -> None:
    """Also in the layer after which nothing agrees any more."""
    fault = Injection.parse("norm_placement@1").apply
    found = compare(changed(record_tiny(n_new=2, change=fault), half_split), record_tiny(n_new=2))
    assert found.first is not None
    assert found.first.key == Key(1, "resid_mid")


@pytest.mark.parametrize("fault", ["rope_pairing", "gqa_map", "rope_pairing@k_rope"])
def test_a_fault_is_not_taken_for_an_order(record_tiny: Record, fault: str) -> None:
    found = compare(record_tiny(change=Injection.parse(fault).apply), record_tiny())
    assert found.verdict == "diverged"
    assert not any("another order" in note for note in found.notes)


@pytest.mark.parametrize("name", ["k", "q", "v"])
def test_an_order_that_only_one_of_them_has_is_a_fault(record_tiny: Record, name: str) -> None:
    """As of a converter that permutes the rows of K alone: products with q are others."""

    def one(key: Key, array: np.ndarray) -> np.ndarray:
        return half_split(Key(key.layer, "q"), array) if key.name.split("_")[0] == name else array

    found = compare(changed(record_tiny(), one), record_tiny())
    assert found.verdict == "diverged"
    assert found.first is not None
    assert found.first.tensor == name


def test_heads_that_are_not_put_back_are_a_fault(record_tiny: Record) -> None:
    """Permuted heads through an output projection that does not have them permuted."""

    def mixed(key: Key, array: np.ndarray) -> np.ndarray:
        rng = np.random.default_rng(0)
        after = key.name in ("attn_out", "resid_mid", "resid_out")
        return rng.permutation(array, axis=-1) if after else other_heads(key, array)

    found = compare(changed(record_tiny(), mixed), record_tiny())
    assert found.first is not None
    assert found.first.tensor == "q"
