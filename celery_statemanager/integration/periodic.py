"""Threads that repeat an action. No event loop and no pool can block them. Greenlets cannot block native ones."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from celery_statemanager.errors import ConfigurationError, StoreError
from celery_statemanager.greenlets import has_green_threads

logger = logging.getLogger(__name__)


class Threads(NamedTuple):
    """A kind of threads.

    Attributes:
        start: starts a thread that calls a function; its second argument is the name of the thread.
        lock: creates a lock on which such a thread may wait.
    """

    start: Callable[[Callable[[], object], str], object]
    lock: Callable[[], Any]

    @classmethod
    def usual(cls) -> Threads:
        """Return the threads of this process, which are greenlets if gevent or eventlet has patched it."""
        return cls(_start_thread, threading.Lock)

    @classmethod
    def native(cls) -> Threads:
        """Return threads of the operating system, which a computing greenlet does not block."""
        if not has_green_threads():
            return cls.usual()
        gevent = sys.modules.get("gevent.monkey")
        if gevent is not None and gevent.is_module_patched("threading"):
            start, lock = gevent.get_original("_thread", ["start_new_thread", "allocate_lock"])
        else:
            original = sys.modules["eventlet.patcher"].original("threading")
            start, lock = original._start_new_thread, original.Lock
        return cls(lambda run, _: start(run, ()), lock)


def _start_thread(run: Callable[[], object], name: str) -> None:
    threading.Thread(target=run, name=name, daemon=True).start()


class _Event:
    """An event that is reset after each wait. A signal handler may set it."""

    def __init__(self, threads: Threads) -> None:
        self._lock = threads.lock()
        self._lock.acquire()

    def set(self) -> None:
        try:
            self._lock.release()
        except RuntimeError:  # it is set
            return

    def wait(self, timeout: float) -> bool:
        """Wait until the event is set, and reset it. Return False after ``timeout`` seconds."""
        return bool(self._lock.acquire(True, timeout))


class Periodic:
    """A daemon thread that repeats an action until it is stopped; a failure is logged and retried.

    Args:
        pause: returns the seconds until the next call.
        last: called once after the thread was stopped.
        threads: the kind of the thread; the usual one when not given.
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
        threads: Threads | None = None,
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
        self._threads = threads or Threads.usual()
        self._is_stopped = False
        self._wake, self._ended = _Event(self._threads), _Event(self._threads)

    def start(self) -> Periodic:
        """Start the thread."""
        self._threads.start(self._run, f"statemanager-{self._name}")
        return self

    def hurry(self) -> None:
        """Call the action at once."""
        self._wake.set()

    def stop(self) -> None:
        """Stop the thread and wait for its end, for at most five seconds."""
        self._is_stopped = True
        self._wake.set()
        self._ended.wait(5.0)

    def _run(self) -> None:
        while not self._is_stopped:
            done = self._try(self._action)
            self._wake.wait(self._pause() if done else min(self._pause(), self._retry_after))
        if self._last is not None:
            self._try(self._last)
        self._ended.set()

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
