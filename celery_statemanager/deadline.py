"""Retries with an end: pauses with jitter that grow, until the time is up."""

from __future__ import annotations

import random
import time

from celery_statemanager.errors import StoreError, StoreUnavailable

FIRST_PAUSE = 0.005
LONGEST_PAUSE = 0.5
SHORTEST_CALL = 0.05


class Deadline:
    """Count down from construction; each pause is about twice the one before.

    Args:
        timeout: seconds for all tries and pauses together.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._end = time.monotonic() + timeout
        self._pause = FIRST_PAUSE

    def for_a_call(self) -> float:
        """Return the seconds that the next call may take."""
        return max(self._end - time.monotonic(), SHORTEST_CALL)

    def pause(self, error: StoreError, raised: type[StoreUnavailable] = StoreUnavailable) -> None:
        """Wait before the next try.

        Raises: ``raised``, with the text and the cause of ``error``, when the time is up.
        """
        wait = self._pause * random.uniform(0.5, 1.0)
        if time.monotonic() + wait >= self._end:
            raise raised(f"{error} (gave up after {self._timeout:g} s)") from error.__cause__
        time.sleep(wait)
        self._pause = min(self._pause * 2, LONGEST_PAUSE)
