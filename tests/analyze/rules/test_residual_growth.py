import numpy as np
import pytest
from rule_traces import found, skipped, spec, write
from tensortrace.tracer.stats import specs, summarize


def stream(factors, dim=64):
    """resid_out of as many layers, each `factor` times the one before."""
    sizes = np.cumprod([1.0, *factors])
    base = np.random.default_rng(0).normal(size=(12, dim)).astype(np.float32)
    return {f"{layer} resid_out": (base * size).astype(np.float32) for layer, size in enumerate(sizes)}


@pytest.mark.parametrize(
    ("factors", "layer", "why"),
    [
        ([1.2, 40, 1.1], 2, "one layer"),
        ([1.6] * 6, 5, "5 layers on end"),
        ([12, 1, 12, 1, 12], 5, "layers so far"),
    ],
)
def test_explosions(tmp_path, factors, layer, why):
    finding, *_ = found(write(tmp_path / "t.h5", stream(factors)), "residual_growth")
    assert (finding.severity, finding.layer) == ("warning", layer)
    assert why in finding.message


def test_of_histograms(tmp_path):
    made, more = {}, {}
    for name, array in stream([1.2, 64, 1.1]).items():
        declared = spec(name, array)
        made |= {f"{k.layer} {k.name}": values for k, values in summarize(declared, array).items()}
        more |= {f"{s.key.layer} {s.key.name}": {"axes": s.axes} for s in specs(declared)}
    finding, *_ = found(write(tmp_path / "t.h5", made, declared=more), "residual_growth")
    assert finding.layer == 2


def test_massive_activations_are_healthy(tmp_path):
    arrays = stream([1.1, 1.2, 1.1])
    arrays["1 resid_out"][0, :2] = 25000
    arrays["2 resid_out"][0, :2] = 25000
    assert not found(write(tmp_path / "t.h5", arrays), "residual_growth")


def test_layers_apart_cannot_be_compared(tmp_path):
    arrays = stream([1000])
    arrays["5 resid_out"] = arrays.pop("1 resid_out")
    assert "neighbouring layers" in skipped(write(tmp_path / "t.h5", arrays), "residual_growth")
