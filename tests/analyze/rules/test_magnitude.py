import numpy as np
import pytest
from rule_traces import attention, found, skipped, write


def layers(**stretch):
    """q of five layers alike, but for those named `l2` (a layer) and `l2h3` (a head)."""
    made = {f"{layer} q": attention(heads=8, seed=layer)["q"] for layer in range(5)}
    for place, factor in stretch.items():
        layer, _, head = place.removeprefix("l").partition("h")
        made[f"{layer} q"][:, int(head) if head else slice(None)] *= factor
    return made


@pytest.mark.parametrize(
    ("stretch", "layer", "told"),
    [
        ({"l2": 4}, 2, "any layer around it"),
        ({"l0": 10}, 0, "any layer around it"),
        ({"l4": 9}, 4, "any layer around it"),
        ({"l3h2": 8}, 3, "in head 2"),
    ],
)
def test_one_that_stands_out(tmp_path, stretch, layer, told):
    (finding,) = found(write(tmp_path / "t.h5", layers(**stretch)), "magnitude")
    assert (finding.severity, finding.layer, finding.tensor) == ("info", layer, "q")
    assert told in finding.message


@pytest.mark.parametrize("stretch", [{}, {"l2": 2}, {"l0": 5}, {"l3h2": 4}, {"l1": 5, "l2": 5, "l0": 5}])
def test_quiet_where_none_does(tmp_path, stretch):
    assert not found(write(tmp_path / "t.h5", layers(**stretch)), "magnitude")


def test_a_warning_where_the_weights_do_not_explain_it(record_tiny, tiny_model):
    def stretch(graph):
        def wrap(compute):
            def longer(*operands, **params):
                q = compute(*operands, **params)
                q[:, 1] *= np.float32(12)
                return q

            return longer

        return graph.replace(lambda op: op.wrapped(wrap) if str(op.out) == "L01 q" else op)

    assert not found(record_tiny(n_new=3), "magnitude", model=tiny_model)
    (finding,) = found(record_tiny(n_new=2, change=stretch), "magnitude", model=tiny_model)
    assert (finding.severity, finding.layer) == ("warning", 1)


def test_the_first_token_does_not_count(tmp_path):
    arrays = layers()
    arrays["2 q"][0] *= 100
    assert not found(write(tmp_path / "t.h5", arrays), "magnitude")


def test_too_few_tokens(tmp_path):
    trace = write(tmp_path / "t.h5", {"q": attention(tokens=3)["q"]}, n_prompt=3)
    assert "fewer than 4 tokens" in skipped(trace, "magnitude")
