"""Every anomaly rule on recordings of the real model: it fires on a fault of its kind, and is quiet without.

`printed_nan` is about logs: tests/analyze/rules/test_printed_nan.py.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from recording import record_trace
from rule_traces import found
from tensortrace.analyze.anomaly import find_anomalies
from tensortrace.analyze.cause import Injection
from tensortrace.analyze.rule import rules
from tensortrace.tracer.gguf import Model
from tensortrace.tracer.graph import Graph, Op
from tensortrace.tracer.names import Key
from tensortrace.tracer.tokenizer import Tokenizer
from tensortrace.tracer.trace import Trace

pytestmark = pytest.mark.slow

TEXT = "The history of the steam engine begins long before James Watt. In the first century, Hero of"
OTHER = "A list of the planets: Mercury, Venus, Earth, Mars, Jupiter, Saturn, Uranus and Neptune. The"
TILE = 4
Change = Callable[[Graph], Graph]


class Fault(NamedTuple):
    """A fault and where its rule has to tell of it; `context` is what the rule needs besides the trace."""

    change: Change
    tensor: str
    layer: int | None
    context: tuple[str, ...] = ()


def inject(text: str) -> Change:
    return lambda graph: Injection.parse(text).apply(graph)


def spoil(key: Key, function: Callable[[np.ndarray], np.ndarray]) -> Change:
    """The output of one op passed through `function`; of attention, one of the results by its name."""

    def wrap(compute):
        def spoiled(*operands, **params):
            made = compute(*operands, **params)
            if isinstance(made, dict):
                return made | ({key.name: function(made[key.name])} if key.name in made else {})
            return function(made)

        return spoiled

    def change(op: Op) -> Op:
        return op.wrapped(wrap) if key in op.outputs else op

    return lambda graph: graph.replace(change)


def without_head(array: np.ndarray) -> np.ndarray:
    array[:, 2] = 0
    return array


def with_nan(array: np.ndarray) -> np.ndarray:
    array[-1, 7] = np.nan
    return array


def same_rows(array: np.ndarray) -> np.ndarray:
    return np.repeat(array[:1], len(array), 0)


FAULTS = {
    "causal": Fault(inject("causal_mask@3"), "probs", 3),
    "dead_heads": Fault(spoil(Key(3, "q"), without_head), "q", 3),
    "denormal": Fault(spoil(Key(5, "up"), lambda up: up * np.float32(1e-39)), "up", 5),
    "final_tile": Fault(inject("softmax_no_max@3"), "m", 3),
    "flat_logits": Fault(
        spoil(Key(None, "logits"), lambda logits: logits * np.float32(1e-3)), "logits", None
    ),
    "identical_rows": Fault(spoil(Key(4, "attn_norm"), same_rows), "attn_norm", 4),
    "magnitude": Fault(inject("norm_plus_one@15,attn_norm"), "q", 15),
    "magnitude_baseline": Fault(inject("norm_plus_one@15,attn_norm"), "q", 15, ("baseline",)),
    "magnitude_weights": Fault(inject("norm_plus_one@0,attn_norm"), "q", 0, ("model",)),
    "ml_scores": Fault(inject("softmax_no_max@3"), "m", 3),
    "nonfinite": Fault(spoil(Key(7, "gate"), with_nan), "gate", 7),
    "norm_gain": Fault(inject("norm_plus_one@9,ffn_norm"), "ffn_norm", 9, ("model",)),
    "perplexity": Fault(inject("gqa_map"), "logits", None, ("baseline",)),
    "probs_sum": Fault(spoil(Key(6, "probs"), lambda probs: probs * np.float32(0.98)), "probs", 6),
    "prompt_independence": Fault(spoil(Key(None, "embd"), np.zeros_like), "logits", None, ("other prompt",)),
    "repetition": Fault(inject("qkv_bias"), "tokens", None),
    "residual_growth": Fault(inject("norm_plus_one@15"), "resid_out", 15),
    "rope_length": Fault(spoil(Key(8, "k_rope"), lambda k: k * np.float32(1.2)), "k_rope", 8),
    "score_range": Fault(inject("attn_scale@12"), "scores", 12),
    "scores_qk": Fault(inject("gqa_map@11"), "scores", 11),
    "softmax_saturation": Fault(inject("attn_scale"), "probs", 0),
    "tiles": Fault(spoil(Key(2, "m_tiles"), lambda m: m[::-1].copy()), "m_tiles", 2),
}


@pytest.fixture(scope="module")
def record(smollm2_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Trace]:
    folder, tokenizer = tmp_path_factory.mktemp("rules"), Tokenizer(smollm2_model.metadata)

    def recorded(name: str, text: str = TEXT, change: Change = lambda graph: graph) -> Trace:
        path = Path(folder) / f"{name}.h5"
        path.unlink(missing_ok=True)
        with np.errstate(all="ignore"):
            record_trace(smollm2_model, path, tokenizer.encode(text), n_new=16, tile=TILE, change=change)
        return Trace(path)

    return recorded


@pytest.fixture(scope="module")
def healthy(record: Callable[..., Trace]) -> Trace:
    return record("healthy")


def test_every_rule_has_a_fault() -> None:
    assert FAULTS.keys() == rules().keys() - {"printed_nan"}


def test_all_are_quiet_on_a_healthy_run(
    record: Callable[..., Trace], healthy: Trace, smollm2_model: Model
) -> None:
    for baseline in (healthy, record("other", OTHER)):
        report = find_anomalies(healthy, baseline, smollm2_model)
        assert [finding for finding in report.findings if finding.severity != "info"] == []


@pytest.mark.parametrize("rule", FAULTS)
def test_each_fires(record: Callable[..., Trace], healthy: Trace, smollm2_model: Model, rule: str) -> None:
    fault = FAULTS[rule]
    trace = record("faulty", change=fault.change)
    context = {}
    if "baseline" in fault.context:
        context["baseline"] = healthy
    if "other prompt" in fault.context:
        context["baseline"] = record("faulty too", OTHER, fault.change)
    if "model" in fault.context:
        context["model"] = smollm2_model
    told = found(trace, rule, **context)
    assert any((finding.layer, finding.tensor) == (fault.layer, fault.tensor) for finding in told), told
