"""Durations in Go's notation, extended by days, weeks and months: ``1h30m``, ``72h``, ``30d``, ``4w``, ``1mo``.

All functions use seconds, exact to the microsecond.
"""

from __future__ import annotations

import math
import re
from datetime import timedelta
from fractions import Fraction
from typing import Any

_UNITS = {
    "mo": 30 * 86_400_000_000,
    "w": 7 * 86_400_000_000,
    "d": 86_400_000_000,
    "h": 3_600_000_000,
    "m": 60_000_000,
    "s": 1_000_000,
    "ms": 1_000,
    "us": 1,
}
"""Microseconds in each unit. A month has 30 days; ``m`` is a minute."""

_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(mo|ms|us|µs|μs|[wdhms])", re.ASCII)
_MAXIMUM = 36_500 * _UNITS["d"]
_EXAMPLE = "write for example 30d, 4w, 1mo (30 days), 72h or 1h30m"


def parse_duration(text: str) -> float:
    """Return a duration in seconds. Its parts may come in any order and are added up.

    >>> parse_duration("1h30m")
    5400.0
    >>> parse_duration("1mo")
    2592000.0

    Raises: ValueError – not a duration, not above 0 or too long.
    """
    stripped, total = text.strip(), Fraction(0)
    at = 0
    while at < len(stripped):
        part = _PART.match(stripped, at)
        if part is None:
            raise ValueError(f"not a duration: {text[:60]!r}{_reason(stripped, at)}; {_EXAMPLE}")
        total += Fraction(part[1]) * _UNITS[part[2].replace("µ", "u").replace("μ", "u")]
        at = part.end()
    return _checked(total, text)


def to_duration(value: Any) -> float:
    """Return a duration in seconds from a text, a number of seconds or a timedelta.

    >>> to_duration("36h") == to_duration(129_600) == to_duration(timedelta(hours=36))
    True

    Raises: TypeError, ValueError.
    """
    if isinstance(value, str):
        return parse_duration(value)
    if isinstance(value, timedelta):
        return _checked(Fraction(value // timedelta(microseconds=1)), value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"a duration is a text, a number of seconds or a timedelta, not {value!r:.60}; {_EXAMPLE}")
    if not math.isfinite(value):
        raise ValueError(f"a duration is a finite number of seconds, not {value!r}")
    return _checked(Fraction(value) * 1_000_000, value)


def format_duration(seconds: float) -> str:
    """Return the text of a duration in days and smaller units; ``parse_duration`` is the inverse.

    >>> format_duration(129_600)
    '1d12h'
    """
    remaining = round(seconds * 1_000_000)
    parts = []
    for unit, size in _UNITS.items():
        if unit not in ("mo", "w"):
            count, remaining = divmod(remaining, size)
            parts += [f"{count}{unit}"] if count else []
    return "".join(parts) or "0s"


def rough_duration(seconds: float) -> str:
    """Return a duration for people, in its two largest units.

    >>> rough_duration(250.7)
    '4m 10s'
    """
    remaining = max(0, int(seconds))
    parts: list[str] = []
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)):
        count, remaining = divmod(remaining, size)
        parts += [f"{count}{unit}"] if count or parts else []
    return " ".join(parts[:2]) or "0s"


def _checked(microseconds: Fraction, given: Any) -> float:
    length = round(microseconds)
    if length <= 0:
        raise ValueError(f"a duration is above 0, not {given!r:.60}; {_EXAMPLE}")
    if length > _MAXIMUM:
        raise ValueError(f"duration too long: {given!r:.60}; the maximum is {_MAXIMUM // _UNITS['d']}d")
    return length / 1_000_000


def _reason(text: str, at: int) -> str:
    number = re.compile(r"[\d.]+", re.ASCII).match(text, at)
    if number and number.end() == len(text):
        return f" (no unit after {number[0]})"
    return f" at {text[at:][:20]!r}" if at else ""
