"""The pool of connections of one process. A forked child does not use the connections of its parent."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import psycopg
from psycopg.pq import TransactionStatus

from celery_statemanager.errors import StoreUnavailable
from celery_statemanager.stores.forking import fork_aware
from celery_statemanager.stores.postgres.address import PostgresAddress
from celery_statemanager.stores.postgres.connection import Connection
from celery_statemanager.stores.postgres.errors import is_lost, translate
from celery_statemanager.stores.postgres.names import Names
from celery_statemanager.stores.postgres.setup import connect

Result = TypeVar("Result")

MAX_IDLE = 8
MAX_CONNECTIONS = 16
"""Connections that the calls of one process use at the same time; further calls wait."""

abandoned: list[Connection] = []
"""Connections of the parent process. A forked child must not send anything on them."""


class Pool:
    """A pool of connections that is thread-safe and can be used on both sides of a fork."""

    def __init__(self, address: PostgresAddress, names: Names) -> None:
        self.address = address
        self.names = names
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._idle: list[Connection] = []
        self._checkouts: set[Checkout] = set()
        self._forking = False
        self._pid = os.getpid()
        fork_aware(self)

    def call(self, action: Callable[[Connection], Result], extra: float = 0.0) -> Result:
        """Run an action on a connection. It may leave a transaction open, which is then rolled back.

        An exception of a signal handler (a soft time limit, Ctrl-C) can be raised wherever a function begins or
        returns: in a context manager before its cleanup begins, and while the checkout is being ended.

        Args:
            extra: seconds that the call may take in addition to the timeout.

        Raises: StoreError; what the action raises.
        """
        if os.getpid() != self._pid:
            self._detect_fork()
        checkout = Checkout()
        try:
            try:
                connection = self._check_out(checkout, time.monotonic() + self.address.timeout + extra)
                return action(connection)
            finally:
                self._check_in(checkout)
        except BaseException as error:
            self._check_in(checkout)  # harmless when repeated
            if isinstance(error, psycopg.Error):
                if is_lost(error):
                    self.close()
                raise self.translate(error) from error
            raise

    def translate(self, error: psycopg.Error) -> Exception:
        """Create the store's exception for an error of psycopg."""
        return translate(error, self.address.shown, self.address.timeout)

    def close(self) -> None:
        """Close this process's connections; those in use are closed when their call ends."""
        with self._lock:
            for checkout in self._checkouts:
                checkout.stale = True
            while self._idle:
                _close(self._idle.pop())

    def before_fork(self) -> None:
        self._changed.acquire()
        self._forking = True
        me = threading.get_ident()
        try:
            self._changed.wait_for(
                lambda: all(each.thread == me for each in self._checkouts), min(self.address.timeout, 1.0)
            )
        except BaseException:  # raised by a signal handler: Python forks anyway, without calling after_fork
            self._forking = False
            self._changed.release()
            raise

    def after_fork(self) -> None:
        if os.getpid() != self._pid:
            self._abandon()
        self._forking = False
        self._changed.notify_all()
        self._changed.release()

    def _detect_fork(self) -> None:
        """Drop the parent's connections in a child that was forked without Python's fork hooks (some web servers)."""
        with self._lock:
            if os.getpid() != self._pid:
                self._abandon()

    def _abandon(self) -> None:
        """Leave the connections to the parent, in a forked child."""
        self._pid = os.getpid()
        me = threading.get_ident()
        others = [each.connection for each in self._checkouts if each.connection is not None and each.thread != me]
        leave([*others, *self._idle])
        for each in self._checkouts:
            each.stale = True
        self._idle.clear()
        self._checkouts.clear()

    def _check_out(self, checkout: Checkout, deadline: float) -> Connection:
        with self._lock:
            while self._forking or len(self._checkouts) >= MAX_CONNECTIONS:
                left = deadline - time.monotonic()
                if left <= 0 and not self._forking:
                    raise StoreUnavailable(
                        f"{self.address.shown}: this process had no free connection for {self.address.timeout:g} s, "
                        f"because {MAX_CONNECTIONS} calls are in progress; increase the store timeout to wait longer"
                    )
                self._changed.wait(max(left, 0.001))
            self._checkouts.add(checkout)
            checkout.connection = self._idle.pop() if self._idle else None
        connection = checkout.connection
        while connection is not None and not connection.is_clean():
            _close(connection)
            with self._lock:
                connection = checkout.connection = self._idle.pop() if self._idle else None
        if connection is None:
            connection = checkout.connection = connect(self.address, self.names, deadline)
        connection.deadline = deadline
        return connection

    def _check_in(self, checkout: Checkout) -> None:
        """Return the connection, if there is one, to the pool. Repeated calls have no effect."""
        connection = checkout.connection
        usable = connection is not None and not checkout.stale and _end_transaction(connection)
        with self._lock:
            if checkout not in self._checkouts:
                return
            self._checkouts.discard(checkout)
            checkout.connection = None
            if connection is not None:
                if usable and not checkout.stale and len(self._idle) < MAX_IDLE:
                    self._idle.append(connection)
                else:
                    _close(connection)
            self._changed.notify_all()


class Checkout:
    """The use of a connection by one call.

    Attributes:
        connection: None before the connection is provided, and after it was returned.
        stale: whether the connection must be closed when it is returned.
    """

    __slots__ = ("connection", "stale", "thread")

    def __init__(self) -> None:
        self.connection: Connection | None = None
        self.stale = False
        self.thread = threading.get_ident()


def leave(connections: list[Connection]) -> None:
    """Close the sockets of connections in a forked child without ending the parent's sessions."""
    for connection in connections:
        with suppress(OSError, psycopg.Error):
            os.close(connection.fileno())
    abandoned.extend(connections)


def _end_transaction(connection: Connection) -> bool:
    """Roll back an open transaction. Return whether the connection can be used again."""
    status = connection.info.transaction_status
    if status in (TransactionStatus.INTRANS, TransactionStatus.INERROR):
        with suppress(psycopg.Error):
            connection.execute("ROLLBACK")
        status = connection.info.transaction_status
    return status == TransactionStatus.IDLE and not connection.closed


def _close(connection: Connection) -> None:
    with suppress(psycopg.Error):
        connection.close()
