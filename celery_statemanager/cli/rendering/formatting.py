"""Format numbers, times, rows and statuses for people. Pure."""

from __future__ import annotations

import math

from celery_statemanager.indexset import IndexSet
from celery_statemanager.models import Status, status_name


def number(value: int) -> str:
    """Return a number like ``12,312``."""
    return f"{value:,}"


def counted(value: int, noun: str) -> str:
    """Return a number with its noun: ``1 task``, ``2 tasks``."""
    return f"{number(value)} {noun}{'' if value == 1 else 's'}"


def percent(fraction: float) -> str:
    """Return a percentage like ``62%``, rounded down: 100% only when everything is done."""
    return f"{math.floor(100 * fraction + 1e-9)}%"


def duration(seconds: float) -> str:
    """Return a duration like ``42s``, ``2m 14s``, ``3h 05m`` or ``5d 03h``."""
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02}s"
    if whole < 86_400:
        return f"{whole // 3600}h {whole % 3600 // 60:02}m"
    return f"{whole // 86_400}d {whole % 86_400 // 3600:02}h"


def deadline(seconds: float) -> str:
    """Return when a job is cancelled, given the seconds until its deadline: ``in 12m 04s``."""
    if seconds > 0:
        return f"in {duration(seconds)}"
    return f"passed {ago(-seconds)}, the next begin or sweep cancels the job"


def age(seconds: float) -> str:
    """Return an age in one unit: ``now``, ``14s``, ``3m``, ``2h`` or ``5d``."""
    whole = int(seconds)
    if whole < 1:
        return "now"
    size, unit = next(pair for pair in ((86_400, "d"), (3600, "h"), (60, "m"), (1, "s")) if whole >= pair[0])
    return f"{whole // size}{unit}"


def ago(seconds: float) -> str:
    """Return ``now`` or an age like ``14s ago``."""
    return f"{age(seconds)} ago" if seconds >= 1 else "now"


def rate(per_second: float) -> str:
    """Return a rate like ``4.1/s``, ``25/min`` or ``3/h``."""
    for scale, unit in ((1, "s"), (60, "min"), (3600, "h")):
        value = per_second * scale
        if value >= 1 or unit == "h":
            return f"{value:,.0f}/{unit}" if value >= 10 else f"{value:.1f}/{unit}"
    raise AssertionError


def ranges(rows: IndexSet, columns: int, ellipsis: str, total: int | None = None) -> str:
    """Return rows as ranges, cut at a comma if they are too long, with their number if it is not obvious.

    Args:
        total: the number of rows, if ``rows`` are only the first of them.
    """
    text = str(rows)
    size = len(rows) if total is None else total
    obvious = len(rows.ranges) <= 1 and size <= 2
    count = "" if obvious else f" ({number(size)})"
    if size == len(rows) and len(text) + len(count) <= columns:
        return text + count
    kept = text[: max(columns - len(count) - len(ellipsis), 1)].rpartition(",")[0]
    return f"{kept},{ellipsis}{count}" if kept else f"{ellipsis}{count}"


def status(code: int, fraction: float | None) -> str:
    """Return the name of a status, its percentage, or its number."""
    if code < 0 or code in (Status.FINISHED, Status.NOT_STARTED) or not fraction:
        return status_name(code)
    return percent(fraction)
