"""A job's live changes, read from its stream by a blocking read on a connection of its own."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterable
from typing import Any

from redis.exceptions import AskError

from celery_statemanager.errors import JobNotFound, StoreUnavailable
from celery_statemanager.models import Scope, State
from celery_statemanager.records import Batch
from celery_statemanager.stores.base import Watch
from celery_statemanager.stores.redis.cells import state_of
from celery_statemanager.stores.redis.errors import CLIENT_ERRORS, translate
from celery_statemanager.stores.redis.keys import address_of
from celery_statemanager.stores.redis.layout import Layout
from celery_statemanager.stores.redis.packing import pack_command
from celery_statemanager.stores.redis.server import Server

SLICE = 1.0
"""Seconds of one blocking read; after a silent one the job is looked at."""

AT_ONCE = 1_000
"""Changes taken by one read: what a reader far behind keeps in memory."""

_Address = tuple[str, int]


class RedisWatch(Watch):
    """Reads addresses of changed cells and then those cells as they are by now: never a backlog of versions.

    After a fork, the child's first read makes a connection of its own.
    """

    def __init__(self, server: Server, layout: Layout, scope: Scope, timeout: float) -> None:
        self._server = server
        self._keys = layout.keys
        self._job = layout.job
        self._scope = scope
        self._head = ("HMGET", self._keys.head, "incarnation", "sequence")
        self._closed = False
        self._socket_timeout = timeout + SLICE
        self._connect()
        try:
            self._cursor = self._living()
        except BaseException:
            self._connection.disconnect()
            raise

    def read(self, timeout: float) -> Batch:
        deadline = time.monotonic() + timeout
        if self._pid != os.getpid() and not self._closed:
            self._connect()
        with self._reading:
            while not self._closed:
                left = deadline - time.monotonic()
                try:
                    batch = self._read(max(left, 0.0))
                except StoreUnavailable:
                    if self._closed:
                        break
                    raise
                if batch is not None or left <= 0:
                    return batch or Batch([])
            self._connection.disconnect()
            return Batch([])

    def close(self) -> None:
        self._closed = True
        raw = getattr(self._connection, "_sock", None)
        if raw is not None and self._pid == os.getpid():  # a parent goes on reading there
            with contextlib.suppress(OSError):
                socket.socket.shutdown(raw, socket.SHUT_RDWR)
        if self._reading.acquire(blocking=False):
            try:
                self._connection.disconnect()
            finally:
                self._reading.release()

    def _connect(self) -> None:
        self._connection = self._server.connection(self._keys.head, self._socket_timeout)
        self._reading = threading.Lock()  # a parent's thread may hold the old one
        self._pid = os.getpid()

    def _read(self, seconds: float) -> Batch | None:
        """Read once; None when nothing came."""
        wait = max(1, int(min(seconds, SLICE) * 1000))
        (reply,) = self._ask(
            ("XREAD", "COUNT", AT_ONCE, "BLOCK", wait, "STREAMS", self._keys.stream, f"{self._cursor}-0")
        )
        if not reply:
            return self._look_after_silence()
        entries = next(iter(reply.values())) if isinstance(reply, dict) else reply[0][1]
        numbers = [int(number.partition(b"-")[0]) for number, _ in entries]
        missed = numbers[0] != self._cursor + 1
        cells = dict.fromkeys(address_of(fields[1]) for _, fields in reversed(entries) if fields[0] == b"c")
        job_changed = any(fields[0] == b"j" for _, fields in entries)
        if job_changed or missed:
            self._living()
        wanted = [each for each in reversed(cells) if self._scope.holds(*each)]
        states = self._states(wanted)
        self._cursor = numbers[-1]  # not before: what is broken off here comes again
        return Batch(states, job_changed, missed) if states or job_changed or missed else None

    def _look_after_silence(self) -> Batch | None:
        """See whether the job still lives and its stream holds all that came; both may go without a word."""
        head, newest = self._ask(self._head, ("XREVRANGE", self._keys.stream, "+", "-", "COUNT", 1))
        sequence = self._sequence(head)
        kept = int(newest[0][0].partition(b"-")[0]) if newest else 0
        if kept >= sequence:
            return None
        self._cursor = sequence
        return Batch([], job_changed=True, resync=True)

    def _living(self) -> int:
        """Give the number of the job's newest change. Raises: JobNotFound."""
        return self._sequence(*self._ask(self._head))

    def _sequence(self, head: list[bytes]) -> int:
        if head[0] != self._job.incarnation.encode():
            raise JobNotFound(*self._job.key)
        return int(head[1])

    def _states(self, cells: Iterable[_Address]) -> list[State]:
        wanted = list(cells)
        if not wanted:
            return []
        packed = self._ask(*(("HGET", self._keys.cells(tag), row) for tag, row in wanted))
        found = zip(wanted, packed)
        return [state_of(self._job.job_id, tag, row, cell) for (tag, row), cell in found if cell is not None]

    def _ask(self, *commands: tuple[Any, ...]) -> list[Any]:
        """Send commands together and read their replies; what fails is no more connected."""
        try:
            return self._answers(*commands)
        except AskError as error:  # MOVED: the next watch finds where
            if not self._server.clustered:
                raise translate(error, self._server.shown) from error
            raise StoreUnavailable(f"{self._server.shown} has moved the job to another node") from error
        except CLIENT_ERRORS as error:
            raise translate(error, self._server.shown) from error
        except (AttributeError, TypeError, ValueError) as error:
            if self._closed:  # closed under the client's hands
                raise StoreUnavailable("closed") from error
            raise

    def _answers(self, *commands: tuple[Any, ...]) -> list[Any]:
        try:
            self._connection.send_packed_command([b"".join(pack_command(*command) for command in commands)])
            return [self._connection.read_response() for _ in commands]
        except BaseException:  # a signal handler's, too: replies that are still to come are not the next command's
            self._connection.disconnect()
            raise
