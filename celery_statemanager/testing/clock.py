"""A clock that a test moves by hand."""

from __future__ import annotations

import threading


class FakeClock:
    """Gives seconds; stands still until it is told to move. Thread-safe.

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
        """Move on, or back where ``seconds`` is negative."""
        with self._lock:
            self._seconds += seconds
