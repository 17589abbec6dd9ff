"""A clock that a test controls."""

from __future__ import annotations

import threading


class FakeClock:
    """A callable that returns a fixed time in seconds, which only ``advance`` changes. Thread-safe.

    Args:
        start: seconds since the epoch.
    """

    def __init__(self, start: float = 1_700_000_000.0) -> None:
        self._seconds = start
        self._lock = threading.Lock()

    def __call__(self) -> float:
        with self._lock:
            return self._seconds

    def advance(self, seconds: float) -> None:
        """Move the time forward, or back if ``seconds`` is negative."""
        with self._lock:
            self._seconds += seconds
