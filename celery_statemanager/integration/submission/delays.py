"""The rows that are submitted with an eta or a countdown. Until then only the broker may have their messages."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from celery.utils.time import maybe_make_aware

from celery_statemanager.indexset import IndexSet

_MOST_RANGES = 100
"""Maximum number of ranges of rows that a job's record keeps."""


class Delays:
    """The delayed rows of one job, added in ascending order.

    Attributes:
        until: the latest of their times, in microseconds; 0 if no row is delayed.
    """

    def __init__(self) -> None:
        self._ranges: list[tuple[int, int]] = []
        self.until = 0

    @property
    def rows(self) -> str:
        """The delayed rows, compressed; the first ranges if there are many."""
        return str(IndexSet.from_ranges(self._ranges))

    def add(self, row: int, options: Mapping[str, Any]) -> None:
        """Add a row whose first message is published with these options; ignore one without a delay."""
        moment = _due(options)
        if moment is None:
            return
        if self._ranges and self._ranges[-1][1] == row - 1:
            self._ranges[-1] = (self._ranges[-1][0], row)
        elif len(self._ranges) < _MOST_RANGES:
            self._ranges.append((row, row))
        else:
            return
        self.until = max(self.until, round(moment * 1_000_000))


def _due(options: Mapping[str, Any]) -> float | None:
    """Return the time of the first delivery in seconds since the epoch; None if it is immediate or cannot be parsed."""
    eta, countdown = options.get("eta"), options.get("countdown")
    try:
        if countdown:
            return time.time() + float(countdown)
        moment = datetime.fromisoformat(eta) if isinstance(eta, str) else eta
        return None if moment is None else maybe_make_aware(moment).timestamp()
    except (TypeError, ValueError, AttributeError, OverflowError):
        return None  # Celery reports a time that it does not accept
