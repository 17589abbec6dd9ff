"""The connection on which a process receives notifications, and the thread that reads it while somebody watches."""

# ruff: noqa: S608 - only names of our own columns and tables are interpolated; every value is bound

from __future__ import annotations

import contextlib
import logging
import os
import select
import threading
import time
from typing import Any

import psycopg

from celery_statemanager.errors import StoreError, StoreUnavailable
from celery_statemanager.stores.forking import fork_aware
from celery_statemanager.stores.postgres.connection import Connection
from celery_statemanager.stores.postgres.pool import Pool, leave
from celery_statemanager.stores.postgres.put import CLOCK
from celery_statemanager.stores.postgres.setup import connect

logger = logging.getLogger("celery_statemanager.stores.postgres")

RENEW_EVERY = 10.0
LEASE = 30.0
"""Seconds for which writers notify a watcher that does not renew its entry."""

_ENTER = f"""
INSERT INTO {{watcher}} (job, until) SELECT job, {CLOCK} + {int(LEASE * 1_000_000)} FROM unnest(%s::bigint[]) job
ON CONFLICT (job) DO UPDATE SET until = excluded.until
"""
_EXPIRE = f"""
DELETE FROM {{watcher}} WHERE job IN (
  SELECT job FROM {{watcher}} WHERE until < {CLOCK} - 60000000 FOR UPDATE SKIP LOCKED
)
"""


class Signal:
    """Wakes one watch."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.lost = False


class Listener:
    """Receives the notifications of a store's process and wakes the watches of the jobs that they name.

    The thread and its connection exist while somebody watches. Without LISTEN (PgBouncer in transaction mode, a
    standby), no thread starts, and watches poll. A forked child has neither.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._lock = threading.RLock()  # a watch may be collected, and call ``forget``, while the lock is held
        self._signals: dict[int, set[Signal]] = {}
        self._running: _Thread | None = None
        self._pid = os.getpid()
        fork_aware(self)

    def watch(self, number: int) -> Signal | None:
        """Return a signal that is set when the job changes, or None if the watch must poll. Raises: StoreError."""
        signal = Signal()
        if not self._pool.call(self._can_listen):
            return None
        with self._lock:
            if self._running is None or self._running.ended:
                self._running = _Thread(self._pool, self._wake, self._numbers)
            running = self._running
            self._signals.setdefault(number, set()).add(signal)
        running.start()
        try:
            running.wait_until_ready()
            self._pool.call(lambda db: enter(db, self._pool, [number]))
        except BaseException:
            self.forget(number, signal)
            raise
        return signal

    def forget(self, number: int, signal: Signal) -> None:
        """Stop waking a watch. The last one ends the thread."""
        with self._lock:
            signals = self._signals.get(number, set())
            signals.discard(signal)
            if not signals:
                self._signals.pop(number, None)
            running = self._running if not self._signals else None
            if running is not None:
                self._running = None
        if running is not None:
            running.stop()

    def close(self) -> None:
        """End the thread; watches raise ``StoreUnavailable`` and must be created again."""
        with self._lock:
            running, self._running = self._running, None
        if running is not None:
            running.stop()
            self._wake(None)

    def before_fork(self) -> None:
        self._lock.acquire()

    def after_fork(self) -> None:
        if os.getpid() != self._pid:
            self._pid = os.getpid()
            self._signals = {}
            if self._running is not None:
                self._running.leave()
                self._running = None
        self._lock.release()

    @staticmethod
    def _can_listen(db: Connection) -> bool:
        return db.is_session and not db.is_standby

    def _numbers(self) -> list[int]:
        with self._lock:
            return list(self._signals)

    def _wake(self, number: int | None) -> None:
        """Wake the watches of a job or, with None, all of them because the connection is lost."""
        with self._lock:
            if number is not None:
                for signal in self._signals.get(number, ()):
                    signal.event.set()
                return
            signals, self._signals = self._signals, {}
        for each in signals.values():
            for signal in each:
                signal.lost = True
                signal.event.set()


class _Thread:
    """The thread that reads one connection."""

    def __init__(self, pool: Pool, wake: Any, numbers: Any) -> None:
        self._pool = pool
        self._wake = wake
        self._numbers = numbers
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self._connection: Connection | None = None
        self._started = threading.Lock()
        self._wakeup = os.pipe()
        self._stopped = self.ended = False

    def start(self) -> None:
        """Start the thread, once."""
        if self._started.acquire(blocking=False):
            threading.Thread(target=self._run, name="statemanager-listen", daemon=True).start()

    def wait_until_ready(self) -> None:
        """Wait until notifications are received. Raises: StoreError."""
        if not self._ready.wait(self._pool.address.timeout + 1.0) or self._error is not None:
            error = self._error
            if isinstance(error, psycopg.Error):
                raise self._pool.translate(error) from error
            if isinstance(error, StoreError):
                raise error
            raise StoreUnavailable(f"{self._pool.address.shown} did not answer to LISTEN in time") from error

    def stop(self) -> None:
        """Make the thread end."""
        self._stopped = True
        with contextlib.suppress(OSError):
            os.write(self._wakeup[1], b"x")

    def leave(self) -> None:
        """Leave the connection to the parent, in a forked child."""
        if self._connection is not None:
            leave([self._connection])

    def _run(self) -> None:
        try:
            self._listen()
        except (psycopg.Error, StoreError, OSError) as error:
            self._error = error
            if self._ready.is_set() and not self._stopped:
                logger.info("the connection for notifications is lost, subscriptions reconnect: %s", error)
        finally:
            self.ended = True
            self._ready.set()
            if not self._stopped:
                self._wake(None)
            if self._connection is not None:
                self._connection.close()
            for each in self._wakeup:
                os.close(each)

    def _listen(self) -> None:
        timeout = self._pool.address.timeout
        db = self._connection = connect(self._pool.address, self._pool.names, time.monotonic() + timeout)
        channel = f"{self._pool.names.names['channel']}{db.tables}"
        db.execute(f'LISTEN "{channel}"')
        self._ready.set()
        poll = select.poll()
        poll.register(db.fileno(), select.POLLIN)
        poll.register(self._wakeup[0], select.POLLIN)
        renew_at = time.monotonic() + RENEW_EVERY
        while not self._stopped:
            poll.poll(max(0.0, renew_at - time.monotonic()) * 1_000)
            if self._stopped:
                return
            db.pgconn.consume_input()
            while (notification := db.pgconn.notifies()) is not None:
                self._wake(int(notification.extra))
            if time.monotonic() >= renew_at:
                db.deadline = time.monotonic() + timeout
                enter(db, self._pool, self._numbers())
                db.execute(self._pool.names.fill(_EXPIRE))
                renew_at = time.monotonic() + RENEW_EVERY


def enter(db: Connection, pool: Pool, numbers: list[int]) -> None:
    """Make writers notify about jobs for the next ``LEASE`` seconds."""
    db.execute(pool.names.fill(_ENTER), (f"{{{','.join(map(str, sorted(numbers)))}}}",))
