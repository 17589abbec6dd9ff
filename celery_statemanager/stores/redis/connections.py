"""Connections on which one command at a time is sent and answered."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from redis.connection import ConnectionPool
from redis.exceptions import ResponseError

from celery_statemanager.stores.redis.errors import CLIENT_ERRORS

MOST_IDLE = 32
"""Connections that are kept for later calls: a thousand threads that call now and then need no thousand of them."""


class Connections:
    """A stack of connections like those of a client's pool, shared by threads.

    A script is answered sooner than redis-py's own layers (pool, retries, metrics) have handed its command through;
    here is nothing between a call and its connection. A connection that failed is dropped, never used again.

    Args:
        pool: says how connections are made; its own are not touched.
    """

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool
        self._idle: deque[Any] = deque()
        self._closed = False

    def ask(self, command: bytes) -> Any:
        """Send a command, packed, once and give its reply as it came. Raises: what redis-py raises."""
        connection = self._take()
        try:
            connection.send_packed_command((command,))
            reply = connection.read_response()
        except ResponseError:
            self._give(connection)
            raise
        except BaseException:
            connection.disconnect()
            raise
        self._give(connection)
        return reply

    def ask_ahead(self, command: bytes, following: Callable[[Any], bytes | None]) -> Iterator[Any]:
        """Send a command, then what follows from each reply until nothing does; give the replies as they came.

        The next command is on its way before a reply is handed on: the server works while the caller does.
        """
        connection = self._take()
        try:
            connection.send_packed_command((command,))
            while True:
                reply = connection.read_response()
                then = following(reply)
                if then is None:
                    break
                connection.send_packed_command((then,))
                yield reply
        except BaseException:
            connection.disconnect()
            raise
        self._give(connection)
        yield reply

    def close(self) -> None:
        """Disconnect those that are idle now, and others as soon as they are."""
        self._closed = True
        while self._idle:
            self._idle.pop().disconnect()

    def _take(self) -> Any:
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return self._pool.connection_class(**self._pool.connection_kwargs)
            if connection.pid != os.getpid():  # inherited by a fork: the parent goes on using it
                continue
            if not _is_quiet(connection):
                connection.disconnect()
            return connection  # connects by itself where it must

    def _give(self, connection: Any) -> None:
        if self._closed or len(self._idle) >= MOST_IDLE:
            connection.disconnect()
        else:
            self._idle.append(connection)


def _is_quiet(connection: Any) -> bool:
    """Whether nothing came since the last reply: not the end of the connection, and no reply that nobody took."""
    try:
        return not connection.can_read()
    except CLIENT_ERRORS:
        return False
