"""The SQLite connections of one process: lent for one call each, none open while the process forks."""

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
from celery_statemanager.stores.sqlite.connection import connect, is_busy, translated

Result = TypeVar("Result")

MOST_IDLE = 8
LONGEST_PAUSE = 0.008

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
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._idle: dict[bool, list[sqlite3.Connection]] = {False: [], True: []}
        self._loans: set[Loan] = set()
        self._forking = False
        self._pid = os.getpid()
        fork_aware(self)

    def read(self, action: Callable[[sqlite3.Connection], Result]) -> Result:
        """Do something that sees one moment. Raises: StoreError, and what it raises."""

        def steps(loan: Loan) -> Result:
            connection = self._lend(loan)
            connection.execute("BEGIN")
            return action(connection)

        self.notice_fork()
        return self._within(Loan(), steps)

    def write(
        self, action: Callable[[sqlite3.Connection], Result], committed: Callable[[], object] | None = None
    ) -> Result:
        """Do something that alone may write: committed unless it raises.

        The threads of a process queue up for their turn; between processes SQLite's lock is tried again and again,
        at short random intervals: its own waiting grows to 100 ms a try, and starves some where many write.

        Args:
            committed: called once that is done, while it is still this thread's turn.

        Raises: StoreError, and what it raises.
        """

        def steps(loan: Loan) -> Result:
            deadline = time.monotonic() + self.timeout
            self._wait_for(turn)
            connection = self._lend(loan)
            _begin(connection, deadline)
            result = action(connection)
            connection.execute("COMMIT")
            if committed is not None:
                committed()
            return result

        self.notice_fork()  # before the turn, which a thread of the parent may have taken with it
        turn = self.turn
        return self._within(Loan(turn), steps)

    def close(self) -> None:
        """Close this process's connections, those that are lent as soon as they come back."""
        with self._lock:
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

    def notice_fork(self) -> None:
        """Begin anew in a child that was forked behind Python's back, as some web servers do."""
        if os.getpid() != self._pid:
            with self._lock:
                if os.getpid() != self._pid:
                    self._abandon()

    def _within(self, loan: Loan, steps: Callable[[Loan], Result]) -> Result:
        """Do something with a loan, and end it.

        What the handler of a signal raises (a soft time limit, Ctrl-C) strikes wherever a function begins or has
        returned: in a context manager of ours before it has begun to clean up, and while a loan is being ended.
        """
        try:
            try:
                return steps(loan)
            finally:
                self._end(loan)
        except BaseException as error:
            self._end(loan)  # what is ended already is left alone
            if isinstance(error, sqlite3.Error):
                raise translated(error, self.path, self.timeout) from error
            raise

    def _end(self, loan: Loan) -> None:
        self._take_back(loan)
        if loan.turn is not None:
            with suppress(RuntimeError):  # it had not come yet
                loan.turn.release()
            loan.turn = None

    def _wait_for(self, turn: threading.RLock) -> None:
        if not turn.acquire(timeout=self.timeout):
            raise StoreUnavailable(
                f"SQLite store {self.path}: other threads of this process have been writing for {self.timeout:g} s; "
                "a larger store timeout waits longer"
            )

    def _lend(self, loan: Loan) -> sqlite3.Connection:
        """Lend a connection; one that writes does not itself wait for others. Raises: sqlite3.Error."""
        with self._lock:
            while self._forking:
                self._changed.wait()
            idle = self._idle[loan.writes]
            loan.connection = idle.pop() if idle else None
            self._loans.add(loan)
        if loan.connection is None:
            loan.connection = connect(self.path, self.timeout, waits=not loan.writes)
        return loan.connection

    def _take_back(self, loan: Loan) -> None:
        """Take a connection back, if it was ever lent and is not back yet."""
        connection = loan.connection
        if connection is not None and connection.in_transaction:
            with suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
        with self._lock:
            self._loans.discard(loan)
            loan.connection = None
            if connection is not None:
                idle = self._idle[loan.writes]
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
        me = threading.get_ident()
        strange = [loan.connection for loan in self._loans if loan.connection is not None and loan.thread != me]
        abandoned.extend([*strange, *self._idle[False], *self._idle[True]])
        for idle in self._idle.values():
            idle.clear()
        self._loans.clear()

    def _close_idle(self) -> None:
        for idle in self._idle.values():
            while idle:
                _close(idle.pop())


class Loan:
    """A connection in the hands of one call; None while it is in nobody's.

    Args:
        turn: the lock of those who write; None for one that only reads.
    """

    __slots__ = ("connection", "stale", "thread", "turn", "writes")

    def __init__(self, turn: threading.RLock | None = None) -> None:
        self.turn = turn
        self.writes = turn is not None
        self.connection: sqlite3.Connection | None = None
        self.stale = False
        self.thread = threading.get_ident()


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
