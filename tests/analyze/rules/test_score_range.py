import pytest
from rule_traces import attention, found, skipped, spec, write
from tensortrace.tracer.stats import specs, summarize


def test_scores_without_their_scale(tmp_path):
    arrays = attention(tokens=24, dim=64, scale=8.0)
    (finding,) = found(write(tmp_path / "t.h5", arrays, n_prompt=24), "score_range")
    assert (finding.severity, finding.tensor) == ("warning", "scores")
    assert finding.value > 25


def test_of_statistics(tmp_path):
    scores = attention(tokens=24, dim=64, scale=8.0)["scores"]
    declared = spec("scores", scores)
    made = {k.name: values for k, values in summarize(declared, scores).items()}
    more = {s.key.name: {"axes": s.axes} for s in specs(declared)}
    assert found(write(tmp_path / "t.h5", made, n_prompt=24, declared=more), "score_range")


@pytest.mark.parametrize("offset", [0, 500])
def test_what_all_keys_share_does_not_count(tmp_path, offset):
    arrays = attention(tokens=24)
    trace = write(tmp_path / "t.h5", {"scores": arrays["scores"] + offset}, n_prompt=24)
    assert not found(trace, "score_range")


def test_short_rows_say_nothing(tmp_path):
    trace = write(tmp_path / "t.h5", attention(tokens=4, scale=50.0), n_prompt=4)
    assert "no query sees 8 keys" in skipped(trace, "score_range")
