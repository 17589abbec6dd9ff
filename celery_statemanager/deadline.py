"""Retries until a deadline, with growing pauses and jitter."""

from __future__ import annotations

import random
import time

from celery_statemanager.errors import StoreError, StoreUnavailable

FIRST_PAUSE = 0.005
LONGEST_PAUSE = 0.5
SHORTEST_CALL = 0.05


class Deadline:
    """A time limit for repeated calls, from construction on. Each pause is about twice as long as the previous one.

    Args:
        timeout: seconds for all calls and pauses together.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._end = time.monotonic() + timeout
        self._pause = FIRST_PAUSE

    def for_a_call(self) -> float:
        """Return the seconds that the next call may take."""
        return max(self._end - time.monotonic(), SHORTEST_CALL)

    def pause(self, error: StoreError, raised: type[StoreUnavailable] = StoreUnavailable) -> None:
        """Wait before the next call.

        Raises: ``raised``, with the text and the cause of ``error``, if the pause would end after the deadline.
        """
        wait = self._pause * random.uniform(0.5, 1.0)
        if time.monotonic() + wait >= self._end:
            raise raised(f"{error} (gave up after {self._timeout:g} s)") from error.__cause__
        time.sleep(wait)
        self._pause = min(self._pause * 2, LONGEST_PAUSE)
