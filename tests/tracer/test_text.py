"""Showing text that came from files."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensortrace.tracer.text import human_bytes, visible


@given(st.text())
def test_nothing_that_acts_is_left(text: str) -> None:
    shown = visible(text)
    assert not {unicodedata.category(c) for c in shown} & {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    assert shown == visible(shown)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred", "\\x1b[31mred"),
        ("a\nb\tc\r", "a\\nb\\tc\\r"),
        ("\u202eevil", "\\u202eevil"),
        ("\U000e0001", "\\U000e0001"),
        ("naïve 漢字 🎉", "naïve 漢字 🎉"),
        ("\udc80", "\\udc80"),
        ("[bold]x[/bold]", "[bold]x[/bold]"),
    ],
)
def test_examples(text: str, shown: str) -> None:
    assert visible(text) == shown


@given(st.text(), st.integers(1, 20))
def test_cut_to_a_limit(text: str, limit: int) -> None:
    shown = visible(text, limit)
    assert len(shown) <= limit
    assert shown == visible(text) or (shown.endswith("…") and visible(text).startswith(shown[:-1]))


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (1_234_567, "1.2 MB"),
        (5_000_000_000, "5.0 GB"),
        (7.5e15, "7500.0 TB"),
        (-2048, "-2.0 kB"),
    ],
)
def test_bytes_for_people(count: float, shown: str) -> None:
    assert human_bytes(count) == shown
