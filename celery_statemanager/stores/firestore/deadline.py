"""How long one call of the store may take, all its tries together."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from celery_statemanager.errors import StoreUnavailable
from celery_statemanager.stores.firestore.trouble import Transient

FIRST_PAUSE = 0.005
LONGEST_PAUSE = 0.5
SHORTEST_CALL = 0.05

T = TypeVar("T")


class Deadline:
    """Counts down from the making; each pause is about twice the one before."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._end = time.monotonic() + timeout
        self._pause = FIRST_PAUSE

    def for_a_call(self) -> float:
        """Give the seconds that the next call may take."""
        return max(self._end - time.monotonic(), SHORTEST_CALL)

    def pause(self, error: StoreUnavailable) -> None:
        """Wait before the next try. Raises: ``error``, when time is up."""
        wait = self._pause * random.uniform(0.5, 1.0)
        if time.monotonic() + wait >= self._end:
            raise StoreUnavailable(f"{error} (gave up after {self._timeout:g} s)") from error.__cause__
        time.sleep(wait)
        self._pause = min(self._pause * 2, LONGEST_PAUSE)

    def insist(self, call: Callable[[], T]) -> T:
        """Make a call that may be repeated until it is answered. Raises: StoreUnavailable, StoreError."""
        while True:
            try:
                return call()
            except Transient as error:
                self.pause(error)
