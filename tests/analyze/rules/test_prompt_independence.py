import numpy as np
from rule_traces import found, skipped, text, write

RNG = np.random.default_rng(0)


def logits(seed=0):
    return np.random.default_rng(seed).normal(size=(12, 40)).astype(np.float32)


def test_equal_logits_for_another_prompt(tmp_path):
    first, second = logits(0), logits(1)
    second[-1] = first[-1]
    a = write(tmp_path / "a.h5", {"logits": first})
    b = write(tmp_path / "b.h5", {"logits": second}, tokens=range(300, 312))
    (finding,) = found(a, "prompt_independence", baseline=b)
    assert (finding.severity, finding.tensor) == ("error", "logits")


def test_equal_long_texts(tmp_path):
    a = text(tmp_path / "a.h5", range(50, 62), prompt=[1, 2, 3])
    b = text(tmp_path / "b.h5", range(50, 62), prompt=[4, 5])
    (finding,) = found(a, "prompt_independence", baseline=b)
    assert (finding.severity, finding.tensor, finding.value) == ("warning", "tokens", 12)


def test_a_short_answer_may_be_the_same(tmp_path):
    a = text(tmp_path / "a.h5", [50, 51, 52], prompt=[1, 2, 3])
    b = text(tmp_path / "b.h5", [50, 51, 52], prompt=[4, 5])
    assert not found(a, "prompt_independence", baseline=b)


def test_the_same_prompt_cannot_tell(tmp_path):
    a, b = (write(tmp_path / name, {"logits": logits()}) for name in ("a.h5", "b.h5"))
    assert "same prompt" in skipped(a, "prompt_independence", baseline=b)
    assert "--baseline" in skipped(a, "prompt_independence")


def test_quiet_on_a_model(record_tiny):
    a, b = record_tiny(n_new=9), record_tiny([40, 41, 42, 43], n_new=9)
    assert not found(a, "prompt_independence", baseline=b)
