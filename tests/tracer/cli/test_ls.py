import pytest
from commands import run


def test_one_line_for_each_tensor(record_tiny):
    trace = record_tiny(n_new=3)
    lines = run("ls", trace.path).out.splitlines()
    assert len(lines) == 1 + len(trace.tensors)
    q = next(line for line in lines if line.startswith("L01 q "))
    assert "token, head 4, dim 16" in q
    assert "linear" in q
    assert lines[1].startswith("embd")
    assert lines[-1].startswith("logits")


@pytest.mark.parametrize(
    ("pattern", "count"),
    [("q", 2), ("*rope", 4), ("L01 *", 21), ("layers/01/q", 1), ("/layers/00/k*", 2), ("logits", 1)],
)
def test_globs(record_tiny, pattern, count):
    assert len(run("ls", record_tiny().path, pattern).out.splitlines()) == 1 + count


def test_nothing_matches(record_tiny):
    outcome = run("ls", record_tiny().path, "zz\x1b")
    assert outcome.code == 2
    assert "no tensor is called zz\\x1b" in outcome.err
