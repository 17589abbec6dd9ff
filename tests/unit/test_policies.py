from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from celery_statemanager.policies import PolicySpec
from celery_statemanager.records import Policy, to_datetime

NOW = 1_800_000_000_000_000
TEHRAN = timezone(timedelta(hours=3, minutes=30))


def now() -> int:
    return NOW


@pytest.mark.parametrize(
    ("given", "num_tasks", "expected"),
    [
        (None, 10, None),
        (0, 10, 0),
        (5, 10, 5),
        (50, 10, 50),
        ("0%", 10, 0),
        ("100%", 10, 10),
        ("2%", 49, 0),
        ("2%", 50, 1),
        ("2%", 149, 2),
        ("2%", 10_000, 200),
        ("0.5%", 199, 0),
        ("0.5%", 200, 1),
        ("29%", 100, 29),  # 0.29 * 100 is less than 29 in binary floating point
        ("33.3%", 1_000, 333),
    ],
)
def test_max_failed_is_a_number_or_a_percentage_rounded_down(given: Any, num_tasks: int, expected: int | None) -> None:
    assert PolicySpec.parse(given, None, now).resolve(num_tasks, now) == Policy(expected)


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (-1, ValueError),
        (2**31, ValueError),
        (1.5, TypeError),
        (2.0, TypeError),
        (True, TypeError),
        (False, TypeError),
        (b"2%", TypeError),
        ([], TypeError),
        ("200%", ValueError),
        ("100.1%", ValueError),
        ("2", ValueError),
        ("-1%", ValueError),
        ("", ValueError),
        ("%", ValueError),
        ("nan%", ValueError),
        ("1e1%", ValueError),
        ("2 %", ValueError),
        ("2%\n", ValueError),
        ("٢%", ValueError),
        ("two", ValueError),
    ],
)
def test_any_other_max_failed_is_an_error_that_names_it(given: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="max_failed must be") as found:
        PolicySpec.parse(given, None, now)
    assert repr(given) in str(found.value) or str(given) in str(found.value)
    assert "pass a number of rows such as 5" in str(found.value)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, Policy()),
        (3600, Policy(None, NOW + 3_600_000_000, 3_600_000_000)),
        (0.5, Policy(None, NOW + 500_000, 500_000)),
        (1e-9, Policy(None, NOW + 1, 1)),
        (to_datetime(NOW + 1), Policy(None, NOW + 1)),
        (to_datetime(NOW + 7).astimezone(TEHRAN), Policy(None, NOW + 7)),
    ],
)
def test_a_deadline_is_a_number_of_seconds_or_a_time(given: Any, expected: Policy) -> None:
    assert PolicySpec.parse(None, given, now).resolve(10, now) == expected


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (0, ValueError),
        (-1, ValueError),
        (-0.5, ValueError),
        (float("nan"), ValueError),
        (float("inf"), ValueError),
        (10**12, ValueError),
        (True, TypeError),
        ("3600", TypeError),
        ("1h", TypeError),
        (timedelta(hours=1), TypeError),
        (to_datetime(NOW), ValueError),
        (to_datetime(NOW - 1), ValueError),
        (datetime(2200, 1, 1), ValueError),  # noqa: DTZ001 - naive
    ],
)
def test_any_other_deadline_is_an_error_that_names_it(given: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="deadline must") as found:
        PolicySpec.parse(None, given, now)
    shown = given.isoformat() if isinstance(given, datetime) and given.tzinfo else repr(given)
    assert shown in str(found.value)
