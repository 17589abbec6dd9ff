"""A job's live changes, read from its stream by blocking reads on a dedicated connection."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from redis.exceptions import AskError

from celery_statemanager.errors import StoreUnavailable
from celery_statemanager.limits import parse_position
from celery_statemanager.models import Scope, State
from celery_statemanager.records import Batch
from celery_statemanager.stores.base import Watch
from celery_statemanager.stores.redis.cells import state_of
from celery_statemanager.stores.redis.errors import CLIENT_ERRORS, evicted, translate
from celery_statemanager.stores.redis.keys import cell_key_of
from celery_statemanager.stores.redis.layout import JobLayout
from celery_statemanager.stores.redis.packing import pack_command
from celery_statemanager.stores.redis.reader import JobReader
from celery_statemanager.stores.transactional import CellKey

BLOCK_SECONDS = 1.0
"""Seconds of one blocking read. After a read without changes, the job itself is checked."""

MAX_CHANGES = 1_000
"""Changes taken by one read, which bounds the memory of a reader that is far behind."""


class _Position(NamedTuple):
    """The id of a change in the stream: its number, and what distinguishes it from one in a restored copy."""

    number: int
    salt: int = 0


class RedisWatch(Watch):
    """A watch that reads which cells have changed and then their current versions, so that no backlog grows.

    After a fork, the first read of the child opens another connection.
    """

    def __init__(self, reader: JobReader, layout: JobLayout, scope: Scope, since: str | None, timeout: float) -> None:
        self._reader = reader
        self._server = reader.server
        self._keys = layout.keys
        self._job = layout.job
        self._scope = scope
        self._head = ("HMGET", self._keys.head, "incarnation", "sequence")
        self._closed = self._missed = False
        position = None if since is None else _Position(*parse_position(since, 2))
        self._socket_timeout = timeout + BLOCK_SECONDS
        self._connect()
        try:
            self._last = self._newest() if position is None else self._go_back(position)
        except BaseException:
            self._connection.disconnect()
            raise

    @property
    def cursor(self) -> str:
        return f"{self._last.number}-{self._last.salt}"

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
        if raw is not None and self._pid == os.getpid():  # otherwise the parent still reads from the socket
            with contextlib.suppress(OSError):
                socket.socket.shutdown(raw, socket.SHUT_RDWR)
        if self._reading.acquire(blocking=False):
            try:
                self._connection.disconnect()
            finally:
                self._reading.release()

    def _connect(self) -> None:
        self._connection = self._server.connection(self._keys.head, self._socket_timeout)
        self._reading = threading.Lock()  # a thread of the parent may have held the old one at the fork
        self._pid = os.getpid()

    def _read(self, seconds: float) -> Batch | None:
        """Read once; return None if nothing of the scope has changed."""
        if self._missed:
            self._missed = False
            return Batch([], job_changed=True, resync=True)
        wait = max(1, int(min(seconds, BLOCK_SECONDS) * 1000))
        (reply,) = self._send(("XREAD", "COUNT", MAX_CHANGES, "BLOCK", wait, "STREAMS", self._keys.stream, self.cursor))
        if not reply:
            return self._check_stream()
        entries = next(iter(reply.values())) if isinstance(reply, dict) else reply[0][1]
        missed = _position_of(entries[0]).number != self._last.number + 1
        cells = {cell_key_of(fields[1]): number for number, fields in reversed(entries) if fields[0] == b"c"}
        job_changed = any(fields[0] == b"j" for _, fields in entries)
        if job_changed or missed:
            self._check_job()
        wanted = [each for each in reversed(cells) if self._scope.holds(*each)]
        states = self._states(wanted)
        self._last = _position_of(entries[-1])  # last, so that an interrupted read is repeated
        cursors = [cells[each].decode() for each in wanted]
        return Batch(states, job_changed, missed, cursors) if states or job_changed or missed else None

    def _check_stream(self) -> Batch | None:
        """Check that the job and its stream exist and are not older: an eviction or a restore adds no entry."""
        sequence, newest = self._ends()
        if newest.number >= sequence >= self._last.number:
            return None
        self._last = newest if newest.number >= sequence else _Position(sequence)
        return Batch([], job_changed=True, resync=True)

    def _newest(self) -> _Position:
        """Return the position of the job's newest change."""
        sequence, newest = self._ends()
        return newest if newest.number >= sequence else _Position(sequence)

    def _ends(self) -> tuple[int, _Position]:
        """Return the number of the job's newest change, and the position of the newest one in the stream."""
        head, newest = self._send(self._head, ("XREVRANGE", self._keys.stream, "+", "-", "COUNT", 1))
        return self._sequence(head), _position_of(newest[0]) if newest else _Position(0)

    def _go_back(self, position: _Position) -> _Position:
        """Return an earlier position if the stream still contains its change, which a copy that was restored lacks."""
        newest = self._newest()
        cursor = f"{position.number}-{position.salt}"
        (found,) = self._send(("XRANGE", self._keys.stream, cursor, cursor))
        self._missed = not found
        return position if found else newest

    def _check_job(self) -> int:
        """Return the number of the job's newest change. Raises: JobNotFound, StoreError."""
        return self._sequence(*self._send(self._head))

    def _sequence(self, head: list[bytes]) -> int:
        if head[0] != self._job.incarnation.encode():
            raise self._reader.missing(self._job.ref)
        return int(head[1])

    def _states(self, cells: Sequence[CellKey]) -> list[State]:
        if not cells:
            return []
        packed = self._send(*(("HGET", self._keys.cells(tag), row) for tag, row in cells))
        if None in packed:
            self._check_job()  # a deleted job has no cells either
            raise evicted(self._keys.cells(cells[packed.index(None)][0]), self._server.shown)
        return [state_of(self._job.job_id, tag, row, cell) for (tag, row), cell in zip(cells, packed)]

    def _send(self, *commands: tuple[Any, ...]) -> list[Any]:
        """Send commands together and return their replies; disconnect if one fails."""
        try:
            try:
                self._connection.send_packed_command([b"".join(pack_command(*command) for command in commands)])
                return [self._connection.read_response() for _ in commands]
            except BaseException:  # also of a signal handler: unread replies must not answer later commands
                self._connection.disconnect()
                raise
        except AskError as error:  # or MOVED, its subclass; the next watch connects to the new node
            if not self._server.clustered:
                raise translate(error, self._server.shown) from error
            raise StoreUnavailable(f"{self._server.shown} has moved the job to another node; watch it again") from error
        except CLIENT_ERRORS as error:
            raise translate(error, self._server.shown) from error
        except (AttributeError, TypeError, ValueError) as error:
            if self._closed:  # raised by redis-py when ``close`` disconnects during a read
                raise StoreUnavailable("the watch was closed") from error
            raise


def _position_of(entry: Any) -> _Position:
    return _Position(*map(int, entry[0].split(b"-")))
