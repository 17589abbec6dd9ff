"""A clock under the control of a test."""

from __future__ import annotations

import threading


class FakeClock:
    """A clock that moves only by ``advance``. Thread-safe.

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
        """Set the clock forward, or back if ``seconds`` is negative."""
        with self._lock:
            self._seconds += seconds
