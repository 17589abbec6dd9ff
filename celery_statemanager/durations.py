"""Lengths of time as Go writes them, and days, weeks and months besides: ``1h30m``, ``72h``, ``30d``, ``4w``, ``1mo``.

All are given in seconds, exact to the microsecond.
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
"""Microseconds. A month is 30 days, ``m`` a minute."""

_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(mo|ms|us|µs|μs|[wdhms])", re.ASCII)
_LONGEST = 36_500 * _UNITS["d"]
_EXAMPLE = "write one like 30d, 4w, 1mo (30 days), 72h or 1h30m"


def parse_duration(text: str) -> float:
    """Read a length of time above 0 as seconds; its parts add up, in any order. Raises: ValueError – with the mend."""
    rest, total = text.strip(), Fraction(0)
    at = 0
    while at < len(rest):
        part = _PART.match(rest, at)
        if part is None:
            raise ValueError(f"not a length of time: {text[:60]!r}{_why(rest, at)}; {_EXAMPLE}")
        total += Fraction(part[1]) * _UNITS[part[2].replace("µ", "u").replace("μ", "u")]
        at = part.end()
    return _checked(total, text)


def to_duration(value: Any) -> float:
    """Take a length of time in any form a setting has: text, seconds, a timedelta. Raises: TypeError, ValueError."""
    if isinstance(value, str):
        return parse_duration(value)
    if isinstance(value, timedelta):
        return _checked(Fraction(value // timedelta(microseconds=1)), value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"a length of time is a text, seconds or a timedelta, not {value!r:.60}; {_EXAMPLE}")
    if not math.isfinite(value):
        raise ValueError(f"a length of time is a finite number of seconds, not {value!r}")
    return _checked(Fraction(value) * 1_000_000, value)


def format_duration(seconds: float) -> str:
    """Give what ``parse_duration`` reads as the same length, in days and smaller units: ``30d``, ``1d12h``."""
    left = round(seconds * 1_000_000)
    parts = []
    for unit, size in _UNITS.items():
        if unit not in ("mo", "w"):
            count, left = divmod(left, size)
            parts += [f"{count}{unit}"] if count else []
    return "".join(parts) or "0s"


def _checked(microseconds: Fraction, given: Any) -> float:
    length = round(microseconds)
    if length <= 0:
        raise ValueError(f"a length of time is above 0, not {given!r:.60}; {_EXAMPLE}")
    if length > _LONGEST:
        raise ValueError(f"too long a time: {given!r:.60}; at most {_LONGEST // _UNITS['d']}d")
    return length / 1_000_000


def _why(text: str, at: int) -> str:
    number = re.compile(r"[\d.]+", re.ASCII).match(text, at)
    if number and number.end() == len(text):
        return f" (no unit after {number[0]})"
    return f" at {text[at:][:20]!r}" if at else ""
