"""Threads that do something again and again: no event loop or pool can hold them up."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from celery_statemanager.errors import ConfigurationError, StoreError

logger = logging.getLogger(__name__)

AFTER_FAILURE = 2.0
"""Seconds until the next try of what has failed, if it would not come sooner."""

TOLD_EVERY = 60.0
"""Seconds until trouble that has not changed is logged again."""


class Periodic:
    """A daemon thread that does something again and again until it is stopped; what fails is logged.

    Args:
        pause: gives the seconds until the next time.
        last: done once after it was stopped.
    """

    def __init__(
        self,
        name: str,
        action: Callable[[], object],
        pause: Callable[[], float],
        last: Callable[[], object] | None = None,
    ) -> None:
        self._name = name
        self._action = action
        self._pause = pause
        self._last = last
        self._told, self._silent_until = "", 0.0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"statemanager-{name}", daemon=True)

    def start(self) -> Periodic:
        """Start the thread."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """Stop the thread and wait for it, but not for ever."""
        self._stopped.set()
        self._thread.join(timeout=5.0)

    def _run(self) -> None:
        while not self._stopped.is_set():
            done = self._try(self._action)
            self._stopped.wait(self._pause() if done else min(self._pause(), AFTER_FAILURE))
        if self._last is not None:
            self._try(self._last)

    def _try(self, action: Callable[[], object]) -> bool:
        try:
            action()
        except Exception as error:  # noqa: BLE001 - the thread goes on whatever happens
            self._tell(error)
            return False
        if self._told:
            logger.warning("%s works again", self._name)
            self._told = ""
        return True

    def _tell(self, error: Exception) -> None:
        """Log a failure; the same one again only after a while."""
        said = f"{type(error).__name__}: {error}"
        if said == self._told and time.monotonic() < self._silent_until:
            return
        self._told, self._silent_until = said, time.monotonic() + TOLD_EVERY
        if isinstance(error, (StoreError, ConfigurationError)):
            logger.warning("%s failed; the next time may do: %s", self._name, error)
        else:
            logger.warning("%s failed; the next time may do", self._name, exc_info=error)
