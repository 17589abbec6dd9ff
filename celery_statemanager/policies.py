"""The conditions under which a job is cancelled, as its submitter states them (rule R22)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from celery_statemanager.limits import short_repr
from celery_statemanager.records import Policy

_PERCENTAGE = re.compile(r"(\d{1,3}(?:\.\d{1,9})?)%", re.ASCII)
_MOST_ROWS = 2**31 - 1


@dataclass(frozen=True, slots=True)
class PolicySpec:
    """Checked arguments of ``submit``, before the number of rows is known.

    Attributes:
        max_failed: a number of rows, or a share of all rows; None for no limit.
    """

    max_failed: int | Fraction | None = None

    @classmethod
    def parse(cls, max_failed: Any) -> PolicySpec:
        """Check the arguments. Raises: TypeError, ValueError."""
        return cls(_check_max_failed(max_failed))

    def resolve(self, num_tasks: int) -> Policy:
        """Return the policy of a job of that many rows."""
        limit = self.max_failed
        return Policy(limit if limit is None or isinstance(limit, int) else int(limit * num_tasks))


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
