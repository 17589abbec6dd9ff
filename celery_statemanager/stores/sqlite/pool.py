"""The SQLite connections of one process: lent for one call each, none open while the process forks."""

from __future__ import annotations

import math
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol

from celery_statemanager.errors import StoreUnavailable
from celery_statemanager.stores.forking import fork_aware
from celery_statemanager.stores.sqlite.connection import connect, translated

MOST_IDLE = 8


class _Forked(Protocol):
    def after_fork(self) -> None: ...


class _Loan:
    """A call under way in a thread; its connection is None until it is open."""

    __slots__ = ("connection", "stale", "thread")

    def __init__(self) -> None:
        self.connection: Any = None
        self.stale = False
        self.thread = threading.get_ident()


_abandoned: list[_Loan] = []
"""Calls that were under way in other threads at a fork: the child must never close their connections."""


class Pool:
    """Lends connections; thread-safe, and usable on both sides of a fork.

    A thread has at most one at a time, and a connection passes from one thread to the next, so that their number
    follows the calls under way and not the threads that come and go.
    """

    def __init__(self, path: str, timeout: float) -> None:
        self.path = path
        self._timeout = timeout
        self._changed = threading.Condition()
        self._idle: list[sqlite3.Connection] = []
        self._loans: set[_Loan] = set()
        self._forking = False
        self._pid = os.getpid()
        self._turn = threading.RLock()
        self._pulse: sqlite3.Connection | None = None
        self._pulses = 0
        self._beat = (0, 0)
        self._beat_at = 0.0
        self.watches: weakref.WeakSet[_Forked] = weakref.WeakSet()
        fork_aware(self)

    @contextmanager
    def connected(self) -> Iterator[sqlite3.Connection]:
        """Lend a connection for single statements."""
        try:
            loan = self._take()
            try:
                yield loan.connection
            finally:
                self._give(loan)
        except sqlite3.Error as error:
            raise translated(error, self.path, self._timeout) from error

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Lend a connection that sees one moment."""
        with self.connected() as connection:
            connection.execute("BEGIN")
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Lend a connection that alone may write; what it did is committed unless an exception passes."""
        if not self._turn.acquire(timeout=self._timeout):
            raise StoreUnavailable(
                f"SQLite store {self.path}: other threads of this process have been writing for {self._timeout:g} s; "
                "a larger store timeout waits longer"
            )
        try:
            with self.connected() as connection:
                connection.execute("BEGIN IMMEDIATE")
                yield connection
                connection.execute("COMMIT")
        finally:
            self._turn.release()

    def beat(self, max_age: float = 0.0) -> tuple[int, int]:
        """Give a value that differs from an earlier one if any connection has committed in between.

        Args:
            max_age: seconds that the answer may be old, so that many watches cost little more than one.
        """
        try:
            with self._changed:
                if self._pulse is None:
                    self._pulse, self._pulses = connect(self.path, self._timeout), self._pulses + 1
                    self._beat_at = -math.inf
                now = time.monotonic()
                if now - self._beat_at >= max_age:
                    self._beat = (self._pulses, self._pulse.execute("PRAGMA data_version").fetchone()[0])
                    self._beat_at = now
                return self._beat
        except sqlite3.Error as error:
            raise translated(error, self.path, self._timeout) from error

    def close(self) -> None:
        """Close this process's connections, those that are lent as soon as they come back."""
        with self._changed:
            for loan in self._loans:
                loan.stale = True
            self._close_idle()

    def before_fork(self) -> None:
        self._changed.acquire()
        self._forking = True
        me = threading.get_ident()
        self._changed.wait_for(lambda: all(loan.thread == me for loan in self._loans), self._timeout)
        self._close_idle()

    def after_fork(self) -> None:
        if os.getpid() != self._pid:
            self._pid = os.getpid()
            self._turn = threading.RLock()
            _abandoned.extend(loan for loan in self._loans if loan.thread != threading.get_ident())
            self._loans.clear()
            for watch in list(self.watches):
                watch.after_fork()
        self._forking = False
        self._changed.notify_all()
        self._changed.release()

    def _take(self) -> _Loan:
        loan = _Loan()
        with self._changed:
            self._changed.wait_for(lambda: not self._forking)
            loan.connection = self._idle.pop() if self._idle else None
            self._loans.add(loan)
        try:
            loan.connection = loan.connection or connect(self.path, self._timeout)
        except BaseException:
            self._give(loan)
            raise
        return loan

    def _give(self, loan: _Loan) -> None:
        connection = loan.connection
        try:
            if connection is not None and connection.in_transaction:
                connection.execute("ROLLBACK")
        except sqlite3.Error:
            loan.stale = True
        with self._changed:
            self._loans.discard(loan)
            if connection is not None and (loan.stale or len(self._idle) >= MOST_IDLE):
                _close(connection)
            elif connection is not None:
                self._idle.append(connection)
            self._changed.notify_all()

    def _close_idle(self) -> None:
        while self._idle:
            _close(self._idle.pop())
        if self._pulse is not None:
            _close(self._pulse)
            self._pulse = None


def _close(connection: sqlite3.Connection) -> None:
    with suppress(sqlite3.Error):
        connection.close()
