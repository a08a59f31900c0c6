"""Quantities with their units: what is meant is understood, a wrong unit is refused in one line."""

from __future__ import annotations

import contextlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coserve.errors import InvalidRequest
from coserve.planner.quantities import seconds, tokens

TIMES = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0, "day": 86400.0}
COUNTS = {"": 1.0, "k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
PERIODS = {"s": 1.0, "h": 3600.0, "d": 86400.0, "day": 86400.0, "month": 30 * 86400.0}

numbers = st.one_of(st.integers(0, 10**6).map(str), st.floats(0, 1e6).map(lambda x: f"{x:.4f}"))
spaces = st.sampled_from(["", " "])


def refused(read, text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read(text, "goal")
    assert caught.value.param == "goal"
    assert str(caught.value).startswith(f"goal: {text!r} is not a ") and "\n" not in str(caught.value)


@given(numbers, spaces, st.sampled_from(sorted(TIMES)))
def test_a_time_is_a_number_and_its_unit(number: str, space: str, unit: str) -> None:
    assert seconds(number + space + unit, "goal") == pytest.approx(float(number) * TIMES[unit])
    assert seconds(number + space + unit.upper(), "goal") == seconds(number + unit, "goal")


@given(numbers, st.sampled_from(sorted(COUNTS)), st.sampled_from([None, *sorted(PERIODS)]))
def test_tokens_are_counted_once_or_by_the_day(number: str, unit: str, period: str | None) -> None:
    count, every = tokens(number + unit + (f"/{period}" if period else ""), "goal")
    assert count == pytest.approx(float(number) * COUNTS[unit])
    assert every == (PERIODS[period] if period else None)


@given(numbers, st.sampled_from([*COUNTS, *(f"{count}/{period}" for count in COUNTS for period in PERIODS)]))
def test_tokens_are_no_time_nor_is_a_bare_number(number: str, unit: str) -> None:
    refused(seconds, number + unit)


@given(numbers, st.sampled_from(sorted(TIMES)))
def test_a_time_is_no_number_of_tokens(number: str, unit: str) -> None:
    refused(tokens, number + unit)


@pytest.mark.parametrize("text", ["", "ms", "-5ms", "+5ms", "5 m s", "5ms5", "1e999s", "nan s", "inf", "5,5s", "3M"])
def test_what_is_no_time(text: str) -> None:
    refused(seconds, text)


@pytest.mark.parametrize(
    "text", ["", "B", "-5B", "5KB", "5B/", "/day", "5B/week", "5B/3h", "1e999", "1e308T", "5B per day"]
)
def test_what_is_no_number_of_tokens(text: str) -> None:
    refused(tokens, text)


@given(st.text())
def test_any_text_is_a_finite_quantity_or_refused(text: str) -> None:
    for read in (seconds, lambda text, name: tokens(text, name)[0]):
        with contextlib.suppress(InvalidRequest):
            assert 0 <= read(text, "goal") < math.inf
