"""Tells watches whether anything was committed, at the price of one look into shared memory."""

from __future__ import annotations

import math
import os
import sqlite3
import threading
import time
import weakref
from contextlib import suppress
from typing import Protocol

from celery_statemanager.stores.forking import fork_aware
from celery_statemanager.stores.sqlite.connection import connect, translated
from celery_statemanager.stores.sqlite.pool import abandoned

Beat = tuple[int, int]


class Forked(Protocol):
    """What wants to know that it goes on in a child."""

    def after_fork(self) -> None:
        """Replace what a thread of the parent may have held."""


class DataVersionPoller:
    """Polls ``PRAGMA data_version`` on a connection that never writes: SQLite counts there what all others commit.

    One for all watches of a store in this process. Thread-safe; closed while the process forks.
    """

    def __init__(self, path: str, timeout: float) -> None:
        self._path = path
        self._timeout = timeout
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._connections = 0
        self._beat: Beat = (0, 0)
        self._beat_at = -math.inf
        self._pid = os.getpid()
        self._watches: weakref.WeakSet[Forked] = weakref.WeakSet()
        fork_aware(self)

    def beat(self, max_age: float = 0.0) -> Beat:
        """Give a value that differs from an earlier one if anybody has committed in between.

        Args:
            max_age: seconds that the answer may be old, so that many watches cost little more than one.

        Raises: StoreError.
        """
        try:
            with self._lock:
                now = time.monotonic()
                if self._connection is None or now - self._beat_at >= max_age:
                    self._beat = self._taken()
                    self._beat_at = now
                return self._beat
        except sqlite3.Error as error:
            self.close()
            raise translated(error, self._path, self._timeout) from error

    def tell_of_forks(self, watch: Forked) -> None:
        """Call ``watch.after_fork`` in children, as long as it lives."""
        with self._lock:
            self._watches.add(watch)

    def close(self) -> None:
        """Let go of the connection; the next beat opens another."""
        with self._lock:
            if self._connection is not None:
                with suppress(sqlite3.Error):
                    self._connection.close()
                self._connection = None

    def before_fork(self) -> None:
        self._lock.acquire()
        self.close()

    def after_fork(self) -> None:
        if os.getpid() != self._pid:
            self._abandon()
        self._lock.release()

    def _abandon(self) -> None:
        """Begin anew in a child."""
        self._pid = os.getpid()
        if self._connection is not None:
            abandoned.append(self._connection)
            self._connection = None
        for watch in list(self._watches):
            watch.after_fork()

    def _taken(self) -> Beat:
        """Look; counters of two connections cannot be compared, so that each beat names its own."""
        if os.getpid() != self._pid:
            self._abandon()
        if self._connection is None:
            self._connection = connect(self._path, self._timeout)
            self._connections += 1
        return self._connections, self._connection.execute("PRAGMA data_version").fetchone()[0]
