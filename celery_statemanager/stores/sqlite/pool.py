"""The SQLite connections of one process: checked out for one call each, and closed while the process forks."""

from __future__ import annotations

import os
import random
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from celery_statemanager.errors import StoreUnavailable
from celery_statemanager.stores.forking import fork_aware
from celery_statemanager.stores.sqlite.connection import connect, is_busy, is_unusable, translate
from celery_statemanager.stores.sqlite.location import file_identity

Result = TypeVar("Result")

MAX_IDLE = 8
MAX_PAUSE = 0.008

abandoned: list[sqlite3.Connection] = []
"""Connections that were open, or used by another thread, at a fork. A forked child must never close them."""


class Pool:
    """A pool of connections that is thread-safe and can be used on both sides of a fork.

    A call uses at most one connection, and the next call of any thread reuses it. The number of connections follows
    the number of concurrent calls, not the number of threads.

    Args:
        prefix: of the names of the tables, in a file of another application.
        patience: returns the seconds for which this call waits for other writers, at most ``timeout``.
    """

    def __init__(
        self, path: str, timeout: float, prefix: str = "", patience: Callable[[], float] | None = None
    ) -> None:
        self.path = path
        self.timeout = timeout
        self.prefix = prefix
        self._patience = patience or (lambda: timeout)
        self.write_lock = threading.RLock()
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._idle: dict[bool, list[sqlite3.Connection]] = {False: [], True: []}
        self._checkouts: set[Checkout] = set()
        self._forking = False
        self._file = file_identity(path)
        self._pid = os.getpid()
        fork_aware(self)

    def read(self, action: Callable[[sqlite3.Connection], Result]) -> Result:
        """Run an action in a read transaction. Raises: StoreError; what the action raises."""

        def steps(checkout: Checkout) -> Result:
            connection = self._check_out(checkout)
            connection.execute("BEGIN")
            return action(connection)

        self.detect_fork()
        return self._run(Checkout(), steps)

    def write(
        self, action: Callable[[sqlite3.Connection], Result], committed: Callable[[], object] | None = None
    ) -> Result:
        """Run an action in a write transaction, which is committed unless the action raises.

        The threads of a process wait for one lock. Between processes, SQLite's lock is retried at short random
        intervals: SQLite's own retries are up to 100 ms apart, which starves some of many writers.

        Args:
            committed: called after the commit, while this thread still holds the write lock.

        Raises: StoreError; what the action raises.
        """

        def steps(checkout: Checkout) -> Result:
            deadline = time.monotonic() + self._patience()
            if not write_lock.acquire(timeout=self.timeout):
                raise StoreUnavailable(
                    f"SQLite store {self.path}: other threads of this process have been writing for "
                    f"{self.timeout:g} s; increase the store timeout to wait longer"
                )
            connection = self._check_out(checkout)
            _begin(connection, deadline)
            result = action(connection)
            connection.execute("COMMIT")
            if committed is not None:
                committed()
            return result

        self.detect_fork()  # first, because a thread of the parent may have held the old lock
        write_lock = self.write_lock
        return self._run(Checkout(write_lock), steps)

    def close(self) -> None:
        """Close this process's connections; those in use are closed when their call ends."""
        with self._lock:
            self._close_all()

    def before_fork(self) -> None:
        self._changed.acquire()
        self._forking = True
        me = threading.get_ident()
        try:
            self._changed.wait_for(lambda: all(each.thread == me for each in self._checkouts), self.timeout)
        except BaseException:  # raised by a signal handler: Python forks anyway, without calling after_fork
            self._forking = False
            self._changed.release()
            raise
        self._close_idle()

    def after_fork(self) -> None:
        if os.getpid() != self._pid:
            self._abandon()
        self._forking = False
        self._changed.notify_all()
        self._changed.release()

    def detect_fork(self) -> None:
        """Drop the parent's connections in a child that was forked without Python's fork hooks (some web servers)."""
        if os.getpid() != self._pid:
            with self._lock:
                if os.getpid() != self._pid:
                    self._abandon()

    def _run(self, checkout: Checkout, steps: Callable[[Checkout], Result]) -> Result:
        """Run the steps of a call and end its checkout.

        An exception of a signal handler (a soft time limit, Ctrl-C) can be raised wherever a function begins or
        returns: in a context manager before its cleanup begins, and while the checkout is being ended.
        """
        try:
            try:
                return steps(checkout)
            finally:
                self._end(checkout)
        except BaseException as error:
            self._end(checkout)  # harmless when repeated
            if isinstance(error, sqlite3.Error):
                if is_unusable(error):
                    self.close()
                raise translate(error, self.path, self.timeout) from error
            raise

    def _end(self, checkout: Checkout) -> None:
        self._check_in(checkout)
        if checkout.write_lock is not None:
            with suppress(RuntimeError):  # not acquired
                checkout.write_lock.release()
            checkout.write_lock = None

    def _check_out(self, checkout: Checkout) -> sqlite3.Connection:
        """Provide a connection. One that writes does not wait for SQLite's locks itself. Raises: sqlite3.Error."""
        with self._lock:
            while self._forking:
                self._changed.wait()
            self._detect_replacement()
            idle = self._idle[checkout.writes]
            checkout.connection = idle.pop() if idle else None
            self._checkouts.add(checkout)
        if checkout.connection is None:
            checkout.connection = connect(self.path, self._patience(), waits=not checkout.writes, prefix=self.prefix)
        return checkout.connection

    def _check_in(self, checkout: Checkout) -> None:
        """Return the connection, if there is one, to the pool. Repeated calls have no effect."""
        connection = checkout.connection
        if connection is not None and connection.in_transaction:
            with suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
        with self._lock:
            self._checkouts.discard(checkout)
            checkout.connection = None
            if connection is not None:
                idle = self._idle[checkout.writes]
                if checkout.stale or len(idle) >= MAX_IDLE or connection.in_transaction:
                    _close(connection)
                else:
                    idle.append(connection)
            if self._forking:
                self._changed.notify_all()

    def _abandon(self) -> None:
        """Drop the parent's connections and locks, in a forked child."""
        self._pid = os.getpid()
        self.write_lock = threading.RLock()
        me = threading.get_ident()
        others = [each.connection for each in self._checkouts if each.connection is not None and each.thread != me]
        abandoned.extend([*others, *self._idle[False], *self._idle[True]])
        for idle in self._idle.values():
            idle.clear()
        self._checkouts.clear()

    def _detect_replacement(self) -> None:
        """Close the connections to a file that another one has replaced under its name: a copy was restored."""
        file = file_identity(self.path)
        if file is not None and file != self._file:
            self._close_all()
            self._file = file

    def _close_all(self) -> None:
        for checkout in self._checkouts:
            checkout.stale = True
        self._close_idle()

    def _close_idle(self) -> None:
        for idle in self._idle.values():
            while idle:
                _close(idle.pop())


class Checkout:
    """The use of a connection by one call.

    Attributes:
        write_lock: the lock that writers hold; None for a call that only reads.
        connection: None before the connection is provided, and after it was returned.
        stale: whether the connection must be closed when it is returned.
    """

    __slots__ = ("connection", "stale", "thread", "write_lock", "writes")

    def __init__(self, write_lock: threading.RLock | None = None) -> None:
        self.write_lock = write_lock
        self.writes = write_lock is not None
        self.connection: sqlite3.Connection | None = None
        self.stale = False
        self.thread = threading.get_ident()


def _begin(connection: sqlite3.Connection, deadline: float) -> None:
    pause = MAX_PAUSE / 16
    while True:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if not is_busy(error) or time.monotonic() >= deadline:
                raise
        else:
            return
        time.sleep(random.uniform(0.0, pause))
        pause = min(pause * 2, MAX_PAUSE)


def _close(connection: sqlite3.Connection) -> None:
    with suppress(sqlite3.Error):
        connection.close()
