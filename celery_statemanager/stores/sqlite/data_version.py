"""Detection of commits to the file, for watches; each check costs one read of shared memory."""

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
from celery_statemanager.stores.sqlite.connection import connect, translate
from celery_statemanager.stores.sqlite.location import file_identity
from celery_statemanager.stores.sqlite.pool import abandoned

DataVersion = tuple[int, int]
"""The number of the poller's connection and its ``data_version``: values of two connections are not comparable."""


class ForkObserver(Protocol):
    """An object that must replace its locks in a forked child."""

    def after_fork(self) -> None:
        """Replace locks that a thread of the parent may have held at the fork."""


class DataVersionPoller:
    """Polls ``PRAGMA data_version`` on a connection that never writes; it changes with every commit of another one.

    All watches of a store in this process share one poller. Thread-safe. It is closed while the process forks.
    """

    def __init__(self, path: str, timeout: float, prefix: str = "") -> None:
        self._path = path
        self._timeout = timeout
        self._prefix = prefix
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._connections = 0
        self._file = file_identity(path)
        self._current: DataVersion = (0, 0)
        self._read_at = -math.inf
        self._pid = os.getpid()
        self._watches: weakref.WeakSet[ForkObserver] = weakref.WeakSet()
        fork_aware(self)

    def current(self, max_age: float = 0.0) -> DataVersion:
        """Return a value that differs from an earlier one if any connection has committed in between.

        Args:
            max_age: seconds for which a value read for another watch is reused.

        Raises: StoreError.
        """
        try:
            with self._lock:
                now = time.monotonic()
                if self._connection is None or now - self._read_at >= max_age:
                    self._current = self._read()
                    self._read_at = now
                return self._current
        except sqlite3.Error as error:
            self.close()
            raise translate(error, self._path, self._timeout) from error

    def notify_of_forks(self, watch: ForkObserver) -> None:
        """Call ``watch.after_fork`` in forked children while the watch exists."""
        with self._lock:
            self._watches.add(watch)

    def close(self) -> None:
        """Close the connection; the next read opens another."""
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
        """Drop the parent's connection, in a forked child."""
        self._pid = os.getpid()
        if self._connection is not None:
            abandoned.append(self._connection)
            self._connection = None
        for watch in list(self._watches):
            watch.after_fork()

    def _read(self) -> DataVersion:
        if os.getpid() != self._pid:
            self._abandon()
        file = file_identity(self._path)
        if file is not None and file != self._file:  # a copy was restored
            self.close()
            self._file = file
        if self._connection is None:
            self._connection = connect(self._path, self._timeout, prefix=self._prefix)
            self._connections += 1
        return self._connections, self._connection.execute("PRAGMA data_version").fetchone()[0]
