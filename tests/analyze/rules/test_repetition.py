import numpy as np
import pytest
from rule_traces import found, skipped, text


@pytest.mark.parametrize(
    ("generated", "severity", "told"),
    [
        ([9] * 24, "warning", "24 rounds of “ w9” (1 token)"),
        ([4, 5, 6, *[9] * 20], "warning", "20 rounds"),
        ([7, 8] * 10, "info", "10 rounds of “ w7 w8” (2 tokens)"),
        (list(range(20, 30)) * 4, "info", "4 rounds"),
        ([*range(20, 60)], None, ""),
        ([1, 5, 2, 6, 3, 7] * 2, None, ""),  # twice is no loop
    ],
)
def test_loops(tmp_path, generated, severity, told):
    findings = found(text(tmp_path / "t.h5", generated, prompt=[40, 41, 42]), "repetition")
    assert [f.severity for f in findings] == ([severity] if severity else [])
    assert not findings or (told in findings[0].message and findings[0].tensor == "tokens")


def test_the_prompt_may_ask_for_it(tmp_path):
    assert not found(text(tmp_path / "t.h5", [7, 8] * 10, prompt=[1, 7, 8, 7, 8]), "repetition")
    assert not found(text(tmp_path / "u.h5", [9] * 20, prompt=[1, 9, 9]), "repetition")


def test_a_baseline_that_does_not_loop_makes_it_a_warning(tmp_path):
    loop, fine = text(tmp_path / "a.h5", [7, 8] * 10), text(tmp_path / "b.h5", list(range(50, 70)))
    assert [f.severity for f in found(loop, "repetition", baseline=fine)] == ["warning"]
    assert [f.severity for f in found(loop, "repetition", baseline=loop)] == ["info"]


def test_sequences_that_come_again(tmp_path):
    rng = np.random.default_rng(0)
    phrase = list(range(50, 60))
    generated = [t for _ in range(8) for t in (*phrase, int(rng.integers(100, 1000)))]
    (finding,) = found(text(tmp_path / "t.h5", generated), "repetition")
    assert (finding.severity, finding.value) == ("info", pytest.approx(0.56, abs=0.1))


def test_a_line_of_dashes_is_no_word(tmp_path, monkeypatch):
    monkeypatch.setattr("tensortrace.analyze.rules.repetition._text", lambda trace, period: "-")
    assert [f.severity for f in found(text(tmp_path / "t.h5", [9] * 24), "repetition")] == ["info"]


def test_short_texts_say_nothing(tmp_path):
    assert "fewer than 12" in skipped(text(tmp_path / "t.h5", [9] * 11), "repetition")
