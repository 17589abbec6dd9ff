"""Threads that repeat an action: no event loop and no pool can block them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from celery_statemanager.errors import ConfigurationError, StoreError

logger = logging.getLogger(__name__)


class Periodic:
    """A daemon thread that repeats an action until it is stopped; a failure is logged and retried.

    Args:
        pause: returns the seconds until the next call.
        last: called once after the thread was stopped.
        retry_after: the longest pause in seconds after a failure.
        log_every: seconds after which a failure that repeats is logged again.
    """

    def __init__(
        self,
        name: str,
        action: Callable[[], object],
        pause: Callable[[], float],
        last: Callable[[], object] | None = None,
        *,
        retry_after: float = 2.0,
        log_every: float = 60.0,
    ) -> None:
        self._name = name
        self._action = action
        self._pause = pause
        self._last = last
        self._retry_after = retry_after
        self._log_every = log_every
        self._failure, self._silent_until = "", 0.0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"statemanager-{name}", daemon=True)

    def start(self) -> Periodic:
        """Start the thread."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """Stop the thread and wait for its end, for at most five seconds."""
        self._stopped.set()
        self._thread.join(timeout=5.0)

    def _run(self) -> None:
        while not self._stopped.is_set():
            done = self._try(self._action)
            self._stopped.wait(self._pause() if done else min(self._pause(), self._retry_after))
        if self._last is not None:
            self._try(self._last)

    def _try(self, action: Callable[[], object]) -> bool:
        try:
            action()
        except Exception as error:  # noqa: BLE001 - the thread continues after every failure
            self._log(error)
            return False
        if self._failure:
            logger.warning("%s recovered", self._name)
            self._failure = ""
        return True

    def _log(self, error: Exception) -> None:
        """Log a failure, but not the one that was logged last and a short time ago."""
        failure = f"{type(error).__name__}: {error}"
        if failure == self._failure and time.monotonic() < self._silent_until:
            return
        self._failure, self._silent_until = failure, time.monotonic() + self._log_every
        if isinstance(error, (StoreError, ConfigurationError)):
            logger.warning("%s failed, will retry: %s", self._name, error)
        else:
            logger.warning("%s failed, will retry", self._name, exc_info=error)
