"""Connections for scripts, without the layers of redis-py; and a limit of the calls that use a client at once."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from redis.connection import ConnectionPool
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from celery_statemanager.stores.redis.errors import CLIENT_ERRORS

MAX_IDLE = 32
"""Idle connections kept for later calls. A process with a thousand threads that call rarely needs only a few."""


class CallLimit:
    """A context manager that at most ``size`` calls can enter at the same time; the others wait.

    Each call of a client takes one connection from its pool, or one from the pool of each node. The pools themselves
    raise when they are empty. Raises: redis.ConnectionError – a call waited for ``timeout`` seconds.
    """

    def __init__(self, size: int, timeout: float) -> None:
        self._free = threading.Semaphore(size)
        self._size = size
        self._timeout = timeout

    def __enter__(self) -> None:
        if not self._free.acquire(timeout=self._timeout):
            raise RedisConnectionError(f"No connection available: {self._size} were in use for {self._timeout:g} s")

    def __exit__(self, *exc: object) -> None:
        self._free.release()

    def renewed(self) -> CallLimit:
        """Return an equal limit for a forked child, in which no other thread calls."""
        return CallLimit(self._size, self._timeout)


class Connections:
    """A stack of connections that threads share. A connection that failed is closed and never used again.

    redis-py's layers (pool, retries, metrics) take longer per command than the server takes for a script. This class
    therefore sends packed commands directly.

    Args:
        pool: the pool whose class and arguments create connections; its own connections are not used.
    """

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool
        self._idle: deque[Any] = deque()
        self._closed = False

    def ask(self, command: bytes) -> Any:
        """Send a packed command once and return its raw reply. Raises: the errors of redis-py."""
        connection = self._acquire()
        try:
            connection.send_packed_command((command,))
            reply = connection.read_response()
        except ResponseError:
            self._release(connection)
            raise
        except BaseException:
            connection.disconnect()
            raise
        self._release(connection)
        return reply

    def ask_ahead(self, command: bytes, next_command: Callable[[Any], bytes | None]) -> Iterator[Any]:
        """Send a command, then the next one that each reply requires; yield the raw replies.

        The next command is sent before a reply is yielded, so that the server works while the caller does.
        """
        connection = self._acquire()
        try:
            connection.send_packed_command((command,))
            while True:
                reply = connection.read_response()
                command_after = next_command(reply)
                if command_after is None:
                    break
                connection.send_packed_command((command_after,))
                yield reply
        except BaseException:
            connection.disconnect()
            raise
        self._release(connection)
        yield reply

    def close(self) -> None:
        """Close idle connections at once and the others as soon as they are idle."""
        self._closed = True
        self.close_idle()

    def close_idle(self) -> None:
        """Close the connections that no call uses."""
        while True:
            try:
                self._idle.pop().disconnect()
            except IndexError:
                return

    def _acquire(self) -> Any:
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return self._pool.connection_class(**self._pool.connection_kwargs)
            if connection.pid != os.getpid():  # inherited by a fork: the parent still uses it
                continue
            if not _is_clean(connection):
                connection.disconnect()
            return connection  # reconnects when it sends

    def _release(self, connection: Any) -> None:
        if self._closed or len(self._idle) >= MAX_IDLE:
            connection.disconnect()
        else:
            self._idle.append(connection)


def _is_clean(connection: Any) -> bool:
    """Return whether nothing has arrived since the last reply: no end of the connection and no unread reply."""
    try:
        return not connection.can_read()
    except CLIENT_ERRORS:
        return False
