"""State writes that failed because the store was unavailable; a thread retries them (rule R18)."""

from __future__ import annotations

import logging
import math
import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from celery_statemanager.errors import AttemptSuperseded, BeginRefused, JobCancelled, JobNotFound, StoreUnavailable
from celery_statemanager.integration.pending_files import PendingFiles

logger = logging.getLogger(__name__)

Key = tuple[str, str]
"""The name of a cell and the kind of write: only the newest write of each kind is kept."""

Action = Callable[[], object]

LogExtra = Mapping[str, Any]
"""The fields that log lines about a write carry: its job, row and tag."""

_backlogs: weakref.WeakSet[Backlog] = weakref.WeakSet()


class Backlog:
    """The waiting writes of one ``StateManager`` in one process; thread-safe, empty in a forked child.

    Args:
        pending_files: where the cells with waiting writes are reported; nowhere when not given.
        max_writes: number of waiting writes above which the oldest is dropped.
        first_delay: seconds between the first failure and the first retry; each further delay is twice as long.
        longest_delay: the longest delay between two retries in seconds.
        avoid_for: seconds after a failure for which tasks do not call the store themselves.
        report_every: seconds between two complete reports to ``pending_files``; each costs its length.
    """

    def __init__(
        self,
        pending_files: PendingFiles | None = None,
        *,
        max_writes: int = 10_000,
        first_delay: float = 0.1,
        longest_delay: float = 2.0,
        avoid_for: float = 2.0,
        report_every: float = 1.0,
    ) -> None:
        self._pending_files = pending_files
        self._max_writes = max_writes
        self._first_delay = first_delay
        self._longest_delay = longest_delay
        self._avoid_for = avoid_for
        self._report_every = report_every
        self.clear()
        _backlogs.add(self)

    def clear(self) -> None:
        """Remove all writes. A forked child does so, because the writes and the thread belong to its parent."""
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)  # enter the lock: a signal can interrupt Condition.__exit__
        self._waiting: dict[Key, tuple[Action, LogExtra | None]] = {}
        self._thread: threading.Thread | None = None
        self._avoid_until = 0.0
        self._is_failing = False
        self._reported_at = -math.inf
        if self._pending_files is not None:
            self._pending_files.replace(())

    @property
    def store_is_down(self) -> bool:
        """Whether the last call of the store failed a short time ago, or a retry did."""
        return self._is_failing or time.monotonic() < self._avoid_until

    def cells(self) -> list[str]:
        """Return the names of the cells whose writes wait."""
        return sorted({name for name, _ in list(self._waiting)})  # no lock: a greenlet that holds it may compute

    def avoid_store(self) -> None:
        """Record that a call of the store has just failed."""
        self._avoid_until = time.monotonic() + self._avoid_for

    def now_or_later(self, key: Key, action: Action, log_extra: LogExtra | None = None) -> None:
        """Call ``action``, or queue it if the store is down or an earlier write of the cell still waits.

        Raises: what ``action`` raises, except ``StoreUnavailable``.
        """
        if not self.store_is_down and not self._waits(key[0]):
            try:
                action()
            except StoreUnavailable:
                self._is_failing = True
                self.avoid_store()
            else:
                return
        self.put(key, action, log_extra)

    def put(self, key: Key, action: Action, log_extra: LogExtra | None = None) -> None:
        """Queue a write for the thread, in place of an older one under the same key."""
        with self._lock:
            if key in self._waiting:
                self._waiting[key] = action, log_extra
            else:
                self._make_room()
                self._waiting[key] = action, log_extra
                if self._pending_files is not None:
                    self._pending_files.add(key[0])
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="statemanager-backlog", daemon=True)
                self._thread.start()

    def flush(self, timeout: float) -> None:
        """Wait until no write waits, for at most ``timeout`` seconds."""
        with self._lock:
            if not self._changed.wait_for(lambda: not self._waiting, timeout):
                logger.error(
                    "the store did not recover in time: the states of %d cells are lost; a sweep marks their tasks as "
                    "LOST or publishes them again",
                    len(self._names()),
                )

    def _waits(self, cell: str) -> bool:
        if not self._waiting:  # the usual case, checked before every write
            return False
        with self._lock:
            return any(name == cell for name, _ in self._waiting)

    def _names(self) -> list[str]:
        return sorted({name for name, _ in self._waiting})

    def _make_room(self) -> None:
        if len(self._waiting) >= self._max_writes:
            oldest = next(iter(self._waiting))
            _, log_extra = self._waiting.pop(oldest)
            text = "more than %d writes wait for the store: the oldest, of cell %s, is dropped"
            logger.error(text, self._max_writes, oldest[0], extra=log_extra)

    def _run(self) -> None:
        delay = self._first_delay
        while (waiting := self._next()) is not None:
            key, action, log_extra = waiting
            try:
                action()
            except StoreUnavailable as error:
                self._is_failing = True
                logger.warning("cannot write a state, will retry: %s", error, extra=log_extra)
                time.sleep(delay)
                delay = min(delay * 2, self._longest_delay)
                continue
            except (AttemptSuperseded, BeginRefused, JobCancelled, JobNotFound) as error:
                logger.info("state not written: %s", error, extra=log_extra)
            except Exception:
                logger.exception("state not written: cell %s", key[0], extra=log_extra)
            delay, self._is_failing, self._avoid_until = self._first_delay, False, 0.0
            self._remove(key, action)

    def _next(self) -> tuple[Key, Action, LogExtra | None] | None:
        """Return the oldest write; None, which ends the thread, when no write waits."""
        with self._lock:
            if not self._waiting:
                self._thread = None  # under the lock: the next write starts another
                return None
            key, (action, log_extra) = next(iter(self._waiting.items()))
            return key, action, log_extra

    def _remove(self, key: Key, action: Action) -> None:
        with self._lock:
            if key in self._waiting and self._waiting[key][0] is action:
                del self._waiting[key]
                now = time.monotonic()
                if not self._waiting or now - self._reported_at >= self._report_every:
                    self._reported_at = now
                    if self._pending_files is not None:
                        self._pending_files.replace(self._names())
            self._changed.notify_all()


def flush_all(timeout: float) -> None:
    """Wait until no write of this process waits, whatever its store, for at most ``timeout`` seconds in all."""
    deadline = time.monotonic() + timeout
    for backlog in list(_backlogs):
        backlog.flush(max(0.0, deadline - time.monotonic()))


def _clear_all() -> None:
    for backlog in list(_backlogs):
        backlog.clear()


os.register_at_fork(after_in_child=_clear_all)
