"""The SQLite connections of one process: lent for one call each, none open while the process forks."""

from __future__ import annotations

import os
import random
import sqlite3
import threading
import time
from contextlib import suppress
from typing import Any

from celery_statemanager.errors import StoreUnavailable
from celery_statemanager.stores.forking import fork_aware
from celery_statemanager.stores.sqlite.connection import connect, is_busy, translated

MOST_IDLE = 8
LONGEST_PAUSE = 0.008


class Loan:
    """A connection in the hands of a call; None until it is open."""

    __slots__ = ("connection", "stale", "thread")

    def __init__(self) -> None:
        self.connection: Any = None
        self.stale = False
        self.thread = threading.get_ident()


abandoned: list[sqlite3.Connection] = []
"""Connections that were open, or in the hands of another thread, at a fork: the child must never close them."""


class Pool:
    """Lends connections; thread-safe, and usable on both sides of a fork.

    A thread has at most one at a time, and a connection passes from one thread to the next, so that their number
    follows the calls under way and not the threads that come and go.
    """

    def __init__(self, path: str, timeout: float) -> None:
        self.path = path
        self.timeout = timeout
        self.turn = threading.RLock()
        self._changed = threading.Condition()
        self._idle: dict[bool, list[sqlite3.Connection]] = {False: [], True: []}
        self._loans: set[Loan] = set()
        self._forking = False
        self._pid = os.getpid()
        fork_aware(self)

    def reading(self) -> Reading:
        """Lend a connection that sees one moment."""
        return Reading(self)

    def writing(self) -> Writing:
        """Lend a connection that alone may write; what it did is committed unless an exception passes."""
        return Writing(self)

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
        try:
            self._changed.wait_for(lambda: all(loan.thread == me for loan in self._loans), self.timeout)
        except BaseException:  # of a signal handler: Python forks all the same, and calls no after_fork
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

    def take(self, *, writes: bool) -> Loan:
        """Lend a connection; one that writes does not itself wait for others. Raises: sqlite3.Error."""
        loan = Loan()
        with self._changed:
            if os.getpid() != self._pid:  # forked behind Python's back, as some web servers do
                self._abandon()
            while self._forking:
                self._changed.wait()
            idle = self._idle[writes]
            loan.connection = idle.pop() if idle else None
            self._loans.add(loan)
        if loan.connection is None:
            try:
                loan.connection = connect(self.path, self.timeout, waits=not writes)
            except BaseException:
                self.give(loan, writes=writes)
                raise
        return loan

    def give(self, loan: Loan, *, writes: bool) -> None:
        """Take a connection back."""
        connection = loan.connection
        if connection is not None and connection.in_transaction:
            with suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
        with self._changed:
            self._loans.discard(loan)
            if connection is not None:
                idle = self._idle[writes]
                if loan.stale or len(idle) >= MOST_IDLE or connection.in_transaction:
                    _close(connection)
                else:
                    idle.append(connection)
            if self._forking:
                self._changed.notify_all()

    def _abandon(self) -> None:
        """Begin anew in a child."""
        self._pid = os.getpid()
        self.turn = threading.RLock()
        strange = [loan.connection for loan in self._loans if loan.thread != threading.get_ident()]
        abandoned.extend([*strange, *self._idle[False], *self._idle[True]])
        for idle in self._idle.values():
            idle.clear()
        self._loans.clear()

    def _close_idle(self) -> None:
        for idle in self._idle.values():
            while idle:
                _close(idle.pop())


class Reading:
    """One moment of the file, by ``with``. Raises: StoreError."""

    __slots__ = ("_loan", "_pool")

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._loan: Loan | None = None

    def __enter__(self) -> sqlite3.Connection:
        pool = self._pool
        try:
            self._loan = pool.take(writes=False)
            connection: sqlite3.Connection = self._loan.connection
            connection.execute("BEGIN")
        except BaseException as error:
            self._end()
            if isinstance(error, sqlite3.Error):
                raise translated(error, pool.path, pool.timeout) from error
            raise
        return connection

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._end()
        if isinstance(error, sqlite3.Error):
            raise translated(error, self._pool.path, self._pool.timeout) from error

    def _end(self) -> None:
        if self._loan is not None:
            self._pool.give(self._loan, writes=False)


class Writing:
    """A write transaction, by ``with``. Raises: StoreError.

    The threads of a process queue up for their turn; between processes SQLite's lock is tried again and again,
    at short random intervals: its own waiting grows to 100 ms a try, and starves some where many write.
    """

    __slots__ = ("_loan", "_pool", "_turn")

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._turn = pool.turn
        self._loan: Loan | None = None

    def __enter__(self) -> sqlite3.Connection:
        pool = self._pool
        deadline = time.monotonic() + pool.timeout
        if not self._turn.acquire(timeout=pool.timeout):
            raise StoreUnavailable(
                f"SQLite store {pool.path}: other threads of this process have been writing for {pool.timeout:g} s; "
                "a larger store timeout waits longer"
            )
        try:
            self._loan = pool.take(writes=True)
            connection: sqlite3.Connection = self._loan.connection
            _begin(connection, deadline)
        except BaseException as error:
            self._end()
            if isinstance(error, sqlite3.Error):
                raise translated(error, pool.path, pool.timeout) from error
            raise
        return connection

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            if error is None and self._loan is not None:
                self._loan.connection.execute("COMMIT")
        except sqlite3.Error as failure:
            error = failure
        finally:
            self._end()
        if isinstance(error, sqlite3.Error):
            raise translated(error, self._pool.path, self._pool.timeout) from error

    def _end(self) -> None:
        try:
            if self._loan is not None:
                self._pool.give(self._loan, writes=True)
        finally:
            self._turn.release()


def _begin(connection: sqlite3.Connection, deadline: float) -> None:
    pause = LONGEST_PAUSE / 16
    while True:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if not is_busy(error) or time.monotonic() >= deadline:
                raise
        else:
            return
        time.sleep(random.uniform(0.0, pause))
        pause = min(pause * 2, LONGEST_PAUSE)


def _close(connection: sqlite3.Connection) -> None:
    with suppress(sqlite3.Error):
        connection.close()
