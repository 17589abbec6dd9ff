"""Durations as text (``1h30m``, ``30d``), numbers and timedeltas."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_statemanager.durations import format_duration, parse_duration, to_duration

MICROSECOND = timedelta(microseconds=1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("72h", timedelta(hours=72)),
        ("1h30m", timedelta(hours=1.5)),
        ("1.5h", timedelta(hours=1.5)),
        (".5h", timedelta(minutes=30)),
        ("30d", timedelta(days=30)),
        ("4w", timedelta(weeks=4)),
        ("1mo", timedelta(days=30)),
        ("1mo1m", timedelta(days=30, minutes=1)),
        ("1d12h", timedelta(days=1.5)),
        ("30m1h", timedelta(hours=1.5)),
        ("2h45m30.5s", timedelta(hours=2, minutes=45, seconds=30.5)),
        ("250ms", timedelta(seconds=0.25)),
        ("7us", 7 * MICROSECOND),
        ("7µs", 7 * MICROSECOND),
        (" 90d\n", timedelta(days=90)),
    ],
)
def test_parse_duration_reads_every_unit(text, expected):
    assert parse_duration(text) == expected.total_seconds()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("30", "no unit after 30"),
        ("1h30", "no unit after 30"),
        ("30x", "duration: '30x'; write"),
        ("1h bad", "at ' bad'"),
        ("-3d", "duration: '-3d'; write"),
        ("d", "duration: 'd'; write"),
        ("٣d", "duration: '٣d'; write"),
        ("1M", "duration: '1M'; write"),
        ("", "above 0"),
        ("0d", "above 0"),
        ("0.0000001s", "above 0"),
        ("9999999999d", "too long"),
    ],
)
def test_parse_duration_rejects_other_text_with_an_example(text, why):
    with pytest.raises(ValueError, match=why) as raised:
        parse_duration(text)
    assert "30d" in str(raised.value) or "too long" in str(raised.value)


@pytest.mark.parametrize("value", ["36h", 129_600, 129_600.0, timedelta(hours=36)])
def test_to_duration_accepts_text_seconds_and_timedeltas(value):
    assert to_duration(value) == 36 * 3600


@pytest.mark.parametrize("value", [0, -1, timedelta(), float("nan"), float("inf"), 1e300])
def test_to_duration_rejects_numbers_that_are_not_positive_and_finite(value):
    with pytest.raises(ValueError):
        to_duration(value)


@pytest.mark.parametrize("value", [True, None, b"30d", [30]])
def test_to_duration_rejects_other_types(value):
    with pytest.raises(TypeError, match="a text, a number of seconds or a timedelta"):
        to_duration(value)


@pytest.mark.parametrize(("length", "text"), [(timedelta(days=30), "30d"), (timedelta(hours=36), "1d12h")])
def test_format_duration_uses_the_largest_units(length, text):
    assert format_duration(length.total_seconds()) == text


@given(st.timedeltas(min_value=MICROSECOND, max_value=timedelta(days=10_000)))
def test_a_duration_round_trips(length):
    assert parse_duration(format_duration(length.total_seconds())) == length.total_seconds()


@given(st.text(max_size=20))
def test_parse_duration_returns_a_positive_number_or_raises_value_error(text):
    try:
        assert parse_duration(text) > 0
    except ValueError:
        return
