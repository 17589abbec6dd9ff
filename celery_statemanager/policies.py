"""The conditions under which a job is cancelled, as its submitter states them (rules R22, R23)."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from fractions import Fraction
from typing import Any

from celery_statemanager.limits import short_repr
from celery_statemanager.records import Policy

_PERCENTAGE = re.compile(r"(\d{1,3}(?:\.\d{1,9})?)%", re.ASCII)
_MOST_ROWS = 2**31 - 1
_LONGEST = 36_500 * 86_400
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


@dataclass(frozen=True, slots=True)
class PolicySpec:
    """Checked arguments of ``submit``, before the number of rows is known.

    Attributes:
        max_failed: a number of rows, or a share of all rows; None for no limit.
        deadline: in microseconds since the epoch; None if there is none, or it is given by ``lifetime``.
        lifetime: the microseconds from the submission to the deadline.
    """

    max_failed: int | Fraction | None = None
    deadline: int | None = None
    lifetime: int | None = None

    @classmethod
    def parse(cls, max_failed: Any, deadline: Any, now: Callable[[], int]) -> PolicySpec:
        """Check the arguments. ``now`` returns the store's time. Raises: TypeError, ValueError, StoreError."""
        limit = _check_max_failed(max_failed)
        if isinstance(deadline, datetime):
            return cls(limit, deadline=_check_moment(deadline, now))
        return cls(limit, lifetime=_check_lifetime(deadline))

    def resolve(self, num_tasks: int, now: Callable[[], int]) -> Policy:
        """Return the policy of a job of that many rows that is submitted now. Raises: StoreError."""
        limit, lifetime = self.max_failed, self.lifetime
        rows = limit if limit is None or isinstance(limit, int) else int(limit * num_tasks)
        return Policy(rows, self.deadline if lifetime is None else now() + lifetime, lifetime)


def _check_max_failed(value: Any) -> int | Fraction | None:
    if value is None:
        return None
    hint = "pass a number of rows such as 5, or a percentage of all rows from '0%' to '100%'"
    if isinstance(value, str):
        match = _PERCENTAGE.fullmatch(value)
        share = None if match is None else Fraction(match[1]) / 100
        if share is None or share > 1:
            raise ValueError(f"max_failed must be a number of rows or a percentage, not {short_repr(value)}: {hint}")
        return share
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"max_failed must be a number of rows or a percentage, not {short_repr(value)}: {hint}")
    if not 0 <= value <= _MOST_ROWS:
        raise ValueError(f"max_failed must be from 0 to {_MOST_ROWS:,}, not {short_repr(value)}: {hint}")
    return int(value)


def _check_lifetime(value: Any) -> int | None:
    if value is None:
        return None
    hint = "pass seconds above 0, or a datetime with a time zone"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"deadline must be a number of seconds or a datetime, not {short_repr(value)}: {hint}")
    if not 0 < value <= _LONGEST:
        raise ValueError(f"deadline must be above 0 and at most {_LONGEST:,} s, not {short_repr(value)}: {hint}")
    return max(1, round(value * 1_000_000))


def _check_moment(value: datetime, now: Callable[[], int]) -> int:
    if value.utcoffset() is None:
        raise ValueError(f"deadline must have a time zone, not {value!r}: use for example datetime.now(timezone.utc)")
    moment = (value - _EPOCH) // timedelta(microseconds=1)
    if moment <= now():
        raise ValueError(f"deadline must be in the future, not {value.isoformat()}: the job would be cancelled at once")
    return moment
